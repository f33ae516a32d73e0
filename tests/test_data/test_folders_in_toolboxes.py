"""mmdet, mmsegmentation and mmpretrain read what a folder is turned into."""

from pathlib import Path

import numpy as np
import pytest
import sample_folders
from mmdet.datasets import CocoDataset
from mmengine.registry import init_default_scope
from mmpretrain.datasets import CustomDataset
from mmseg.datasets import BaseSegDataset
from PIL import Image
from sample_folders import SIX, WRITERS, read


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / 'my pictures'  # a space in it
    folder.mkdir()
    return folder


def names(dataset: CocoDataset | BaseSegDataset | CustomDataset) -> list[str]:
    return sorted(Path(entry['img_path']).name for entry in dataset.load_data_list())


@pytest.mark.parametrize('source', WRITERS)
def test_mmdet(root: Path, source: str) -> None:
    WRITERS[source](root, source != 'Pascal VOC')
    data = read(root)
    found, objects = [], []
    for split in data.splits.values():
        dataset = CocoDataset(
            ann_file=split.annotations,
            data_prefix=dict(img=split.images),
            metainfo=dict(classes=data.classes, palette=data.palette),
            pipeline=[],
        )
        assert len(dataset) == split.num_images
        for entry in dataset.load_data_list():
            assert Path(entry['img_path']).is_file()
            found.append(Path(entry['img_path']).name)
            objects += [
                (found[-1], item['bbox_label'], item['bbox']) for item in entry['instances']
            ]
    assert sorted(found) == list(SIX.names)
    expected = []
    for name, polygons in zip(SIX.names, SIX.polygons, strict=True):
        for label, polygon in polygons:
            x, y, width, height = sample_folders.box_of(polygon)
            expected.append((name, label, [x, y, x + width, y + height]))
    assert sorted(objects) == sorted(expected)


@pytest.mark.parametrize('colours', [(), [(0, 0, 0), (0, 128, 0), (9, 9, 200)]])
def test_mmseg(root: Path, colours: list[tuple[int, int, int]]) -> None:
    sample_folders.write_maps(root, colours)
    data = read(root)
    found = []
    for split in data.splits.values():
        dataset = BaseSegDataset(
            ann_file=split.annotations,
            data_prefix=dict(img_path=split.images, seg_map_path=split.maps),
            img_suffix=data.img_suffix,
            seg_map_suffix=data.seg_map_suffix,
            metainfo=dict(classes=data.classes, palette=data.palette),
            pipeline=[],
        )
        assert len(dataset) == split.num_images
        found += names(dataset)
        for entry in dataset.load_data_list():
            with Image.open(entry['seg_map_path']) as image:
                labels = np.array(image)
            number = int(Path(entry['img_path']).stem)
            np.testing.assert_array_equal(labels, np.array(sample_folders.index_map(number)))
    assert sorted(found) == list(SIX.names)


def test_mmpretrain(root: Path) -> None:
    sample_folders.write_class_folders(root)
    data = read(root)
    init_default_scope('mmpretrain')
    labels = {}
    for split in data.splits.values():
        dataset = CustomDataset(
            data_prefix=split.images,
            ann_file=split.annotations,
            metainfo=dict(classes=data.classes),
            pipeline=[],
        )
        assert len(dataset) == split.num_images
        for entry in dataset.load_data_list():
            assert Path(entry['img_path']).is_file()
            labels[Path(entry['img_path']).name] = int(entry['gt_label'])
    assert labels == {f'{i}.png': int(i > 2) for i in range(6)}
