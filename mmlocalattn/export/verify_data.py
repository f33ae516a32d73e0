"""The images on which an exported file is compared with its model."""

import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, init_default_scope

from mmlocalattn.adapt.data import fit_to_data, task_of
from mmlocalattn.data.check import check_data, leaf_datasets
from mmlocalattn.data.folders import read_folder
from mmlocalattn.data.images import write_image
from mmlocalattn.export.pipeline import pipeline_without_labels
from mmlocalattn.files import write_json
from mmlocalattn.training.data_check import check_sample
from mmlocalattn.training.data_sets import classes_of

SAMPLE_IMAGES = 24
SAMPLE_SIDE = 160
STRETCH = (1.0, 1.25, 1.5, 1.75, 2.0)
"""Ratios of the sides of the sample images, in turns of the height and of the width."""

LARGEST_SAMPLE = round(SAMPLE_SIDE * max(STRETCH))


@dataclass(frozen=True)
class VerifyData:
    """Images, and what they are evaluated by.

    Attributes:
        source: What they are, in words.
        items: As the test pipeline packs them.
        metainfo: Of the data set.
        evaluator: Part of a config, None where the labels of the model are not known.
        image_ids: Of COCO, if ``items`` are a part of the data set.
    """

    source: str
    items: Sequence
    metainfo: Mapping
    evaluator: Any = None
    image_ids: Sequence[int] | None = None


@contextmanager
def open_data(cfg: Config, source: str, number: int) -> Iterator[VerifyData]:
    """The images that ``--verify`` names.

    Args:
        cfg: Of the model. Its scope becomes the default one.
        source: ``'config'`` for its validation data, ``'sample'`` for drawn ones, else a folder as
            ``tools/train.py --data`` takes.
        number: How many, evenly spread over the data set; 0 for all.

    Raises:
        FileNotFoundError: If something that is read does not exist.
        ValueError: If the folder has other classes than the model, or the config no such data.
    """
    init_default_scope(cfg.default_scope)
    with tempfile.TemporaryDirectory() as temporary:
        if source == 'sample':
            yield _sample_data(cfg, Path(temporary))
        elif source == 'config':
            yield _data_of(cfg, number, f'validation data of {Path(cfg.filename or "").name}')
        else:
            yield _data_of(_fit_to_folder(cfg, source, Path(temporary)), number, source)


def check_source(cfg: Config, source: str) -> None:
    """Look for what :func:`open_data` will read, before a file is made.

    Raises:
        FileNotFoundError: If a file or folder does not exist.
        ModuleNotFoundError: If what draws the sample images is not installed.
        ValueError: If the config has no validation data, or the folder none for the model.
    """
    if source == 'sample':
        if importlib.util.find_spec('sklearn') is None:
            raise ModuleNotFoundError(
                'the sample images need scikit-learn: pip install scikit-learn, or name others '
                'with --verify'
            )
    elif source == 'config':
        check_data(cfg, (_split_of(cfg),))
    elif not Path(source).is_dir():
        raise FileNotFoundError(
            f"--verify {source}: there is no such folder; 'config' and 'sample' are no folders"
        )
    else:
        with tempfile.TemporaryDirectory() as temporary:
            _fit_to_folder(cfg, source, Path(temporary))


def _split_of(cfg: Config) -> str:
    """The split for validation, or that for test in its place."""
    for split in ('val', 'test'):
        if cfg.get(f'{split}_dataloader') and cfg.get(f'{split}_evaluator'):
            return split
    raise ValueError(f'{cfg.filename} has no validation data: --verify sample has its own')


def _fit_to_folder(cfg: Config, folder: str, out: Path) -> Config:
    fitted = fit_to_data(cfg, read_folder(folder, str(out / 'data'), 0.2, False, task_of(cfg)))
    known, there = classes_of(cfg), classes_of(fitted)
    if known and there and known != there:
        raise ValueError(
            f'{folder} has the classes {", ".join(there[:5])}, and the model of {cfg.filename} '
            f'{", ".join(known[:5])}: verify it on data of its own classes, or without '
            'labels on --verify sample'
        )
    return fitted


def _data_of(cfg: Config, number: int, source: str) -> VerifyData:
    split = _split_of(cfg)
    check_sample(cfg, (split,), with_model=False)
    dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
    indices = list(range(len(dataset)))
    if 0 < number < len(indices):
        indices = np.linspace(0, len(dataset) - 1, number).round().astype(int).tolist()
    ids = [dataset.get_data_info(index).get('img_id') for index in indices]
    return VerifyData(
        source if len(ids) == len(dataset) else f'{source}, {len(ids)} of {len(dataset)} images',
        _Chosen(dataset.__getitem__, indices),
        dataset.metainfo,
        cfg[f'{split}_evaluator'],
        ids if len(ids) < len(dataset) and None not in ids else None,
    )


class _Chosen(Sequence):
    """Some items of a data set, made when they are asked for."""

    def __init__(self, make: Callable[[Any], Any], keys: Sequence) -> None:
        self.make = make
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: Any) -> Any:
        return self.make(self.keys[index])


def _sample_data(cfg: Config, folder: Path) -> VerifyData:
    """Digit cards of different shapes, with labels if the model knows digits."""
    check_source(cfg, 'sample')
    from mmlocalattn.data.digit_cards import write_digit_cards

    digits = _digits_of(cfg)
    cards = folder / 'cards'
    drawn = digits or (0, 1, 2, 3)
    write_digit_cards(cards, 1, SAMPLE_IMAGES, SAMPLE_SIDE, drawn)
    _stretch(cards)
    scope = cfg.default_scope
    has_metric = cfg.get('val_evaluator') or cfg.get('test_evaluator')
    if digits and has_metric and scope in ('mmdet', 'mmseg'):
        fitted = _labelled(cfg, cards)
        return _data_of(fitted, 0, 'sample data (digit cards)')
    images = [
        dict(img_path=str(path), img_id=index, seg_fields=[], reduce_zero_label=False)
        for index, path in enumerate(sorted((cards / 'val').iterdir()))
    ]
    pipeline = Compose(pipeline_without_labels(cfg))
    items = _Chosen(lambda image: pipeline(dict(image)), images)
    return VerifyData('sample data (digit cards, without labels)', items, {})


def _digits_of(cfg: Config) -> list[int]:
    """The digits that are all classes of a model, whose index maps have a background too; or []."""
    classes = list(classes_of(cfg) or ())
    background = ['background'] if cfg.default_scope == 'mmseg' else []
    digits = [name for name in classes if name in list('0123456789')]
    return [int(name) for name in digits] if classes == [*background, *digits] else []


def _labelled(cfg: Config, cards: Path) -> Config:
    """The config with the sample data for validation."""
    cfg = cfg.copy()
    split = _split_of(cfg)
    leaf = next(leaf_datasets(cfg[f'{split}_dataloader'].dataset))
    common = dict(
        data_root=str(cards), metainfo=leaf.get('metainfo'), pipeline=leaf.get('pipeline')
    )
    annotations = 'annotations/instances_val.json'
    if cfg.default_scope == 'mmdet':
        prefix = dict(img='val/')
        dataset = dict(type='CocoDataset', ann_file=annotations, data_prefix=prefix, test_mode=True)
        evaluator = dict(cfg[f'{split}_evaluator'], ann_file=str(cards / annotations))
    else:
        prefix = dict(img_path='val', seg_map_path='semantic/val')
        dataset = dict(type='BaseSegDataset', data_prefix=prefix, test_mode=True)
        evaluator = cfg[f'{split}_evaluator']
    cfg[f'{split}_dataloader'] = dict(dataset={**dataset, **common})
    cfg[f'{split}_evaluator'] = evaluator
    return cfg


def _stretch(cards: Path) -> None:
    """Give the validation images of a set of digit cards different shapes, by a wider border."""
    path = cards / 'annotations' / 'instances_val.json'
    content = json.loads(path.read_text())
    for index, image in enumerate(content['images']):
        more = round(SAMPLE_SIDE * (STRETCH[index % len(STRETCH)] - 1))
        down, right = (more, 0) if index % 2 else (0, more)
        for file, border in (
            (cards / 'val' / image['file_name'], cv2.BORDER_REPLICATE),
            (cards / 'semantic' / 'val' / f'{image["id"]:05d}.png', cv2.BORDER_CONSTANT),
        ):
            pixels = np.asarray(cv2.imread(str(file), cv2.IMREAD_UNCHANGED), np.uint8)
            wider = cv2.copyMakeBorder(pixels, 0, down, 0, right, border)
            write_image(file, np.asarray(wider, np.uint8))
        image.update(height=image['height'] + down, width=image['width'] + right)
    write_json(path, content)
