"""The test pipeline of a config without its files: what it makes of images."""

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope

from mmlocalattn.data.check import leaf_datasets
from mmlocalattn.training import channels_of, preprocessor_of

LABELS = ('LoadAnnotations', 'LoadPanopticAnnotations', 'FilterAnnotations', 'LoadProposals')
"""Transforms that read or change annotations alone."""

RESIZING = ('Resize', 'Pad')
"""Transforms that a file with pre-processing does itself."""

SIDE = 640
SHAPES = ((SIDE, SIDE), (SIDE, 2 * SIDE), (2 * SIDE, SIDE))
"""(height, width) of images that stand for those that people have."""


def pipeline_without_labels(cfg: Config) -> list[dict]:
    """The transforms of the test data but those that read annotations.

    Raises:
        ValueError: If the config has no test data.
    """
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if loader is None:
        raise ValueError(f'{cfg.filename} has no test data, whose pipeline makes images')
    pipeline = next(leaf_datasets(loader.dataset)).get('pipeline') or []
    return [step for step in pipeline if step_name(step) not in LABELS]


def step_name(step: dict) -> str:
    """The class of a transform, without its scope."""
    return str(step['type']).rpartition('.')[2]


def sizes_after(cfg: Config) -> list[tuple[int, int]]:
    """The sizes to which a config resizes and pads images of 1:1, 1:2 and 2:1.

    Args:
        cfg: Of mmdet or mmsegmentation, whose scope becomes the default one.

    Returns:
        Different (height, width), the square first. None where images keep the size they have, or
        the pipeline needs more than an image.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    divisor = divisor_of(cfg)
    sizes = []
    try:
        steps = pipeline_without_labels(cfg)
        pipeline = Compose([s for s in steps if not step_name(s).startswith('Load')])
        for shape in SHAPES:
            image = np.zeros((*shape, channels_of(cfg)), np.uint8)
            made = pipeline(
                dict(img=image, img_shape=shape, ori_shape=shape, img_path='', img_id=0)
            )
            sizes.append(tuple(made['inputs'].shape[1:]))
    except Exception:  # of any class that a config names
        return []
    if sizes == list(SHAPES):
        return []
    padded = [(-(-h // divisor) * divisor, -(-w // divisor) * divisor) for h, w in sizes]
    return list(dict.fromkeys(padded))


def test_scale(cfg: Config) -> list[int] | None:
    """(width, height) to which the test pipeline resizes; None where it does not."""
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    for step in pipeline_without_labels(cfg) if loader else ():
        if step_name(step) == 'Resize' and step.get('scale') is not None:
            scale = step['scale']
            return [scale] * 2 if isinstance(scale, int) else list(scale)
    return None


def divisor_of(cfg: Config) -> int:
    """Of which the data preprocessor of a config makes the sides of images multiples."""
    preprocessor = preprocessor_of(cfg)
    in_test = preprocessor.get('test_cfg') or {}
    return preprocessor.get('pad_size_divisor') or in_test.get('size_divisor') or 1


def leave_raw(cfg: Config) -> None:
    """Let a config read images and do nothing else, for a file with pre-processing.

    Args:
        cfg: Of mmdet or mmsegmentation. Its data for validation and test, and its data
            preprocessor, are changed in place.
    """
    kinds = {'mmdet': 'DetDataPreprocessor', 'mmseg': 'SegDataPreProcessor'}
    cfg.model.data_preprocessor = dict(type=kinds[cfg.default_scope])
    for split in ('val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        for leaf in leaf_datasets(loader.dataset) if loader else ():
            leaf['pipeline'] = [s for s in leaf['pipeline'] if step_name(s) not in RESIZING]


def limit_size(cfg: Config, side: int) -> None:
    """Let the test pipelines of a config make no image larger than a square.

    Args:
        cfg: Of mmdet or mmsegmentation. Changed in place.
        side: Of the square, pixels.
    """
    resize = dict(type='Resize', scale=(side, side), keep_ratio=True)
    for split in ('val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        for leaf in leaf_datasets(loader.dataset) if loader else ():
            first, *rest = [s for s in leaf['pipeline'] if step_name(s) not in RESIZING]
            leaf['pipeline'] = [first, resize, *rest]
