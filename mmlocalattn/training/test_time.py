"""Test-time augmentation: a config whose images are tested flipped and at several scales."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict

from mmlocalattn.data.check import leaf_datasets
from mmlocalattn.training.data_sets import type_name

_PACKERS = {'mmdet': 'PackDetInputs', 'mmseg': 'PackSegInputs', 'mmpretrain': 'PackInputs'}
_RESIZES = ('Resize', 'ResizeEdge', 'FixScaleResize')
SCALES = (0.1, 10.0)
"""The least and the largest factor: beyond them images have no pixels left, or more than memory."""
_KEPT = 100  # detections of an image, where the model does not say how many


def enable_test_time_augmentation(cfg: Config, scales: Sequence[float] = ()) -> None:
    """Test every image as it is and flipped, at one or more scales, and merge the predictions.

    Boxes are merged by NMS, with the masks of those that remain; the scores of classes and pixels
    are averaged. A config with a ``tta_model`` and a ``tta_pipeline`` of its own is tested by
    these, if no scales are given.

    Args:
        cfg: Of mmdet, mmsegmentation or mmpretrain. Changed in place.
        scales: Factors on the size at which the config tests; none is 1 alone.

    Raises:
        ValueError: If predictions of such a model cannot be merged, the pipeline of the config is
            of another kind, or a scale is none of :data:`SCALES`.
    """
    least, most = SCALES
    bad = [scale for scale in scales if not least <= scale <= most]
    if bad:
        raise ValueError(
            f'scales of test-time augmentation are factors from {least:g} to {most:g}, got '
            f'{bad[0]:g}'
        )
    scope = cfg.get('default_scope')
    if scope not in _PACKERS:
        raise ValueError(
            f'test-time augmentation is for {", ".join(_PACKERS)}: {cfg.filename} is of {scope}'
        )
    own = cfg.get('tta_model') and cfg.get('tta_pipeline')
    if own and not scales:
        merger, pipeline = cfg.tta_model, cfg.tta_pipeline
    else:
        merger, pipeline = _merger(cfg, scope), None
    for dataset in leaf_datasets(cfg.test_dataloader.dataset):
        dataset['pipeline'] = copy.deepcopy(pipeline) or _augmented(
            dataset.get('pipeline') or [], scales or (1,), scope, f'the test of {cfg.filename}'
        )
    # Of default_collate, images of several sizes are no batch.
    cfg.test_dataloader.collate_fn = dict(type='pseudo_collate')
    cfg.model = ConfigDict(**merger, module=cfg.model)


def _merger(cfg: Config, scope: str) -> dict[str, Any]:
    """What merges the predictions of a model."""
    model = cfg.model
    if scope == 'mmseg':
        if type_name(model) == 'DepthEstimator':
            raise ValueError(f'test-time augmentation merges no depth: {cfg.filename} predicts it')
        return dict(type='SegTTAModel')
    if scope == 'mmpretrain':
        return dict(type='AverageClsScoreTTA')
    settings = model.get('test_cfg') or {}
    if settings.get('panoptic_on', 'panoptic_fusion_head' in model):
        raise ValueError(f'test-time augmentation merges no panoptic maps: {cfg.filename} has them')
    if 'mask_head' in model and 'bbox_head' not in model:
        raise ValueError(
            f'test-time augmentation merges boxes: {model.type} of {cfg.filename} finds masks alone'
        )
    last = settings.get('rcnn') or settings
    if not isinstance(last, Mapping):  # of cascades in which each stage has its own
        last = last[-1]
    nms = last.get('nms') or dict(type='nms', iou_threshold=0.5)
    merge = dict(nms=copy.deepcopy(nms), max_per_img=last.get('max_per_img', _KEPT))
    return dict(type='mmlocalattn.DetTTA', tta_cfg=merge)


def _augmented(pipeline: list[dict], scales: Sequence[float], scope: str, where: str) -> list[dict]:
    """A pipeline whose images are resized by each of the scales, as they are and flipped."""
    names = [type_name(part) for part in pipeline]
    if not names or names[-1] != _PACKERS[scope]:
        raise ValueError(
            f'test-time augmentation needs a pipeline that ends with {_PACKERS[scope]}: that of '
            f'{where} is {", ".join(names) or "empty"}'
        )
    packer = copy.deepcopy(pipeline[-1])
    if packer.get('meta_keys') is not None:  # the mergers flip back what says that it is flipped
        packer['meta_keys'] = (*packer['meta_keys'], 'flip', 'flip_direction')
    loads = [index + 1 for index, name in enumerate(names) if name.startswith('LoadImage')]
    resizes = [index for index, name in enumerate(names) if name in _RESIZES]
    start = (resizes or loads or [0])[0]  # without a resize, images are tested as they are loaded
    views = [
        dict(type='Compose', transforms=_view(pipeline[start:-1], scale, flip, scope))
        for scale in scales
        for flip in (0.0, 1.0)
    ]
    return [*pipeline[:start], dict(type='TestTimeAug', transforms=[views, [packer]])]


def _view(parts: Sequence[Mapping], scale: float, flip: float, scope: str) -> list[dict]:
    """What is done to an image between loading and packing it, in one view of it.

    Args:
        parts: What is done without augmentation, with the resize first if there is one.
        scale: Factor on the sizes in it.
        flip: Probability, 0 or 1.
        scope: Of the toolbox.
    """
    has_resize = bool(parts) and type_name(parts[0]) in _RESIZES
    scaled = [_scaled(part, scale) for part in parts]
    if not has_resize and scale != 1:
        scaled.insert(0, dict(type='Resize', scale_factor=scale, keep_ratio=True))
    # Annotations that are loaded behind the flip are those of the image as it is, and detectors
    # pad the right side. A crop of a classifier may be half a pixel off the middle: flipped last.
    at = len(scaled) if scope == 'mmpretrain' else int(has_resize or scale != 1)
    scaled.insert(at, dict(type='RandomFlip', prob=flip))
    return scaled


def _scaled(part: Mapping, factor: float) -> dict:
    """A transform, with its size times a factor if it resizes or pads."""
    result = dict(copy.deepcopy(part))
    name = type_name(part)
    keys = ('scale', 'scale_factor') if name in _RESIZES else ('size',) if name == 'Pad' else ()
    for key in keys:
        value = result.get(key)
        if isinstance(value, (list, tuple)):
            result[key] = tuple(_times(each, factor) for each in value)
        elif value is not None:
            result[key] = _times(value, factor)
    return result


def _times(value: float, factor: float) -> float:
    """A size in pixels stays a whole number."""
    return max(1, round(value * factor)) if isinstance(value, int) else value * factor
