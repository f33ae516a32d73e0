"""Index maps, as mmsegmentation reads them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from mmlocalattn.data.findings import Budget
from mmlocalattn.data.index_maps import MapData, check_index_maps, read_map, seen_labels

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def loaded(path: Path, **entries: object) -> np.ndarray:
    """What mmsegmentation makes of a map."""
    load = LoadAnnotations(imdecode_backend=entries.pop('backend', 'pillow'))
    results = dict(seg_map_path=str(path), seg_fields=[], reduce_zero_label=False, label_map=None)
    return load({**results, **entries})['gt_seg_map']


@pytest.mark.parametrize('reduce', [False, True])
@pytest.mark.parametrize('label_map', [None, {0: 2, 1: 255, 2: 0, 3: 1}])
def test_labels_are_those_that_mmsegmentation_sees(
    tmp_path: Path, reduce: bool, label_map: dict | None
) -> None:
    cv2.imwrite(str(tmp_path / 'a.png'), RAMP)
    names = [str(i) for i in range(256)]
    data = MapData('train_dataloader', [], names, reduce_zero_label=reduce, label_map=label_map)
    expected = loaded(tmp_path / 'a.png', reduce_zero_label=reduce, label_map=label_map)
    assert np.array_equal(seen_labels(data)[RAMP], expected)


def test_labels_out_of_range() -> None:
    seen = seen_labels(MapData('train_dataloader', [], ('a', 'b')))
    assert seen[[0, 1, 255]].tolist() == [0, 1, 255]
    assert (seen[2:255] == -1).all()


@pytest.mark.parametrize(('backend', 'channels'), [('pillow', 1), ('cv2', 3)])
def test_palettes_are_read_as_mmcv_does(tmp_path: Path, backend: str, channels: int) -> None:
    image = Image.fromarray(RAMP)
    image.putpalette(range(256), 'RGB')
    image.save(tmp_path / 'a.png')
    labels, is_jpeg = read_map(str(tmp_path / 'a.png'), backend)
    assert not is_jpeg
    assert labels.ndim == (2 if channels == 1 else 3)
    assert labels.shape == loaded(tmp_path / 'a.png', backend=backend).shape


def test_pictures_without_maps(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / 'a.png'), RAMP)
    data = MapData('test_dataloader', [(str(tmp_path / 'a.png'), None)], ('a', 'b'))
    assert not list(check_index_maps(data, Budget()))
