"""The contact sheet of a folder: pictures with their boxes, polygons, maps and names of classes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sample_folders

from mmlocalattn.data.folders import read_folder
from mmlocalattn.visualisation.contact_sheet import CAPTION, TILE, draw_contact_sheet

WRITERS: dict[str, Callable[[Path], None]] = {
    'boxes': lambda root: sample_folders.write_coco(root, masks=False),
    'polygons': lambda root: sample_folders.write_yolo(root, masks=True),
    'maps': sample_folders.write_maps,
    'classes': sample_folders.write_class_folders,
}


@pytest.mark.parametrize('write', WRITERS.values(), ids=WRITERS)
def test_sheet(tmp_path: Path, write: Callable[[Path], None]) -> None:
    root = tmp_path / 'mine'
    root.mkdir()
    write(root)
    data = read_folder(str(root), str(tmp_path / 'data'))
    sheet = draw_contact_sheet(data, number=6)
    assert sheet.shape == (2 * (TILE + CAPTION), 4 * TILE, 3)
    np.testing.assert_array_equal(sheet, draw_contact_sheet(data, number=6))
    assert draw_contact_sheet(data, number=2).shape == (TILE + CAPTION, 2 * TILE, 3)
    colours = {tuple(int(value) for value in colour[::-1]) for colour in data.palette}
    found = {tuple(pixel) for pixel in sheet.reshape(-1, 3).tolist()}
    if data.task in ('detection', 'instance segmentation'):
        assert colours <= found


def test_maps_are_painted_half(tmp_path: Path) -> None:
    root = tmp_path / 'mine'
    sample_folders.write_maps(root)
    data = read_folder(str(root), str(tmp_path / 'data'))
    plain = draw_contact_sheet(type(data)(**{**vars(data), 'palette': ((0, 0, 0),) * 3}), number=1)
    painted = draw_contact_sheet(data, number=1)
    assert not np.array_equal(plain, painted)
    half = np.array([value // 2 for value in data.palette[0][::-1]])
    difference = painted[:TILE].astype(int) - plain[:TILE]
    assert np.abs(difference - half).sum(-1).min() <= 3


def test_polygons_that_are_wrong_are_not_drawn(tmp_path: Path) -> None:
    """Where only boxes are learned, nothing is wrong with the data."""
    root = tmp_path / 'mine'
    root.mkdir()
    sample_folders.write_coco(root, masks=False)
    content = sample_folders.coco_content(False)
    for entry, polygons in zip(content['annotations'], ([[1, 2, 3]], [4, 5, 6, 7]), strict=False):
        entry['segmentation'] = polygons
    (root / 'annotations.json').write_text(json.dumps(content))
    data = read_folder(str(root), str(tmp_path / 'data'))
    assert data.task == 'detection'
    sheet = draw_contact_sheet(data, number=6)
    shutil.rmtree(root / 'images')
    assert not np.array_equal(sheet, draw_contact_sheet(data, number=6))
