"""Small data sets and changes that break them, for the tests of the checks."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import mmdet.datasets
import mmpretrain.datasets
import mmseg.datasets
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmlocalattn.data.check import KINDS
from mmlocalattn.training.data_check import check_all, check_sample

TOOLBOXES = (mmdet.datasets, mmpretrain.datasets, mmseg.datasets)  # some print when imported
SPLITS = ('train', 'val')
Change = Callable[[Any], object]


def write_image(path: Path, width: int = 40, height: int = 30, orientation: int = 1) -> None:
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise).save(path, exif=exif)


def annotation(number: int, category: int) -> dict:
    return dict(
        id=number,
        image_id=number,
        category_id=category,
        bbox=[2, 3, 10, 12],
        area=120,
        iscrowd=0,
        segmentation=[[2, 3, 12, 3, 12, 15, 2, 15]],
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images of 40 x 30 pixels, a cat and a dog, in COCO's format and as index maps."""
    monkeypatch.chdir(tmp_path)
    for split in SPLITS:
        content = dict(
            images=[
                dict(id=number, file_name=f'{number}.jpg', width=40, height=30) for number in (1, 2)
            ],
            categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
            annotations=[annotation(1, 1), annotation(2, 2)],
        )
        Path(f'{split}.json').write_text(json.dumps(content))
        Path(f'maps_{split}').mkdir()
        for number in (1, 2):
            write_image(Path(split) / f'{number}.jpg')
            labels = np.zeros((30, 40), np.uint8)
            labels[5:15] = number
            cv2.imwrite(f'maps_{split}/{number}.png', labels)
    return tmp_path


def coco_config() -> Config:
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    ]
    loaders = {
        f'{split}_dataloader': dict(
            batch_size=2,
            dataset=dict(
                type='CocoDataset',
                ann_file=f'{split}.json',
                data_prefix=dict(img=f'{split}/'),
                metainfo=dict(classes=('cat', 'dog')),
                test_mode=split == 'val',
                pipeline=pipeline,
            ),
        )
        for split in SPLITS
    }
    model = dict(
        type='MaskRCNN',
        rpn_head=dict(type='RPNHead', num_classes=1),
        roi_head=dict(
            bbox_head=dict(type='Shared2FCBBoxHead', num_classes=2),
            mask_head=dict(type='FCNMaskHead', num_classes=2),
        ),
    )
    evaluator = dict(type='CocoMetric', ann_file='val.json', metric=['bbox', 'segm'])
    return Config(dict(default_scope='mmdet', model=model, val_evaluator=evaluator, **loaders))


def map_config() -> Config:
    loaders = {
        f'{split}_dataloader': dict(
            batch_size=2,
            dataset=dict(
                type='BaseSegDataset',
                data_prefix=dict(img_path=split, seg_map_path=f'maps_{split}'),
                metainfo=dict(classes=('ground', 'cat', 'dog')),
                pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
            ),
        )
        for split in SPLITS
    }
    norm = dict(type='BN', requires_grad=True)
    model = dict(
        type='EncoderDecoder',
        decode_head=dict(type='UPerHead', num_classes=3, norm_cfg=norm),
        auxiliary_head=[dict(type='FCNHead', num_classes=3, norm_cfg=norm)],
    )
    return Config(dict(default_scope='mmseg', model=model, **loaders))


def with_file(change: Change, split: str = 'train') -> Change:
    """A change of the annotations of a split."""

    def apply(cfg: Config) -> None:
        path = Path(f'{split}.json')
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def first(key: str, **entries: object) -> Change:
    """A change of the first image, category or annotation of the training data."""
    return with_file(lambda content: content[key][0].update(entries))


def without(name: str) -> Change:
    return with_file(lambda content: content['annotations'][0].pop(name))


def set_(path: str, value: object) -> Change:
    return lambda cfg: cfg.merge_from_dict({path: value})


def classes(*names: str) -> Change:
    """Other names for the classes of both loaders."""

    def apply(cfg: Config) -> None:
        for split in SPLITS:
            cfg[f'{split}_dataloader'].dataset.metainfo.classes = names

    return apply


def each(*changes: Change) -> Change:
    return lambda cfg: [change(cfg) for change in changes]


def draw(labels: object, name: str = '1', split: str = 'train') -> Change:
    """Another index map."""
    return lambda cfg: cv2.imwrite(f'maps_{split}/{name}.png', np.asarray(labels))


def full(value: int, kind: type = np.uint8) -> np.ndarray:
    return np.full((30, 40), value, kind)


def assert_line(line: str, expected: str) -> None:
    """A line is as expected, in which ``\\d+`` and ``.*`` stand for themselves as patterns."""
    pattern = re.escape(expected).replace(r'\\d\+', r'\d+').replace(r'\.\*', '.*')
    assert re.fullmatch(pattern, line), f'\n{line}\n{expected}'


def check(cfg: Config, change: Change, expected: str) -> None:
    """A change gives one line, from the quick check and from the whole one."""
    change(cfg)
    with pytest.raises((FileNotFoundError, ValueError)) as raised:
        check_sample(cfg, SPLITS)
    line = re.sub(
        r' \(\d+ more: python tools/analysis/check_data.py CONFIG\)$', '', str(raised.value)
    )
    assert_line(line, expected)
    if isinstance(raised.value, ValueError):
        found = [it for it in check_all(cfg, SPLITS) if it.severity == 'error']
        assert line == found[0].message
        assert {it.kind for it in found} <= set(KINDS)


def said(cfg: Config, change: Change, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a run that goes on says, which is what the whole check finds."""
    change(cfg)
    check_sample(cfg, SPLITS)
    lines = capsys.readouterr().out.splitlines()
    found = check_all(cfg, SPLITS)
    assert {it.kind for it in found} <= set(KINDS)
    return lines
