"""The size of training images, from the objects in them; how long to train, from their number.

The rules are our choice. They are for data that are not COCO: whatever the user gives stands.
"""

from collections.abc import Iterator, Sequence
from math import ceil, sqrt
from typing import Any

from mmengine.config import Config

from mmlocalattn.adapt.nodes import dicts
from mmlocalattn.data.folders import FolderData

OBJECT_SIDE = 48  # pixels that the median object gets: six cells of stride 8
SHORT_SIDE = 256  # pixels that an image has at least, so that large objects are seen in detail
LARGEST_GAIN = 2.0  # enlarging shows no more than there is
TOLERANCE = 0.1  # sizes that would change by less stay
MULTIPLE, SMALLEST = 32, 64  # pixels, of sides
PLACES = sum(4.0**-level for level in (3, 4, 5, 6))  # per pixel, of the maps of strides 8 to 64
ITERATIONS = 2000  # at least, unless these are more epochs than
EPOCHS = 300
VALIDATIONS = 12

_SIZES = ('scale', 'scales', 'img_scale', 'crop_size', 'size', 'random_size_range', 'stride')
_CROPS = ('crop_size', 'size', 'stride')


def fit_sizes(cfg: Config, data: FolderData) -> None:
    """Scale all sizes of images by one factor.

    Detection: the median object gets 48 pixels and the shorter side 256, or more; but images are
    not enlarged more than twofold, nor above the sizes of the config. Segmentation: images that
    are smaller than the config expects keep their size. A model made for one size, and a
    classifier, stay as they are. A transformer that takes its queries from its maps gets images
    whose maps have as many places.

    Args:
        cfg: Of :func:`~mmlocalattn.adapt.data.fit_to_data`. Changed in place.
        data: The same.
    """
    now = _scale_of(cfg, data.image_size)
    if now is None or _has_fixed_size(cfg) or cfg.default_scope == 'mmpretrain':
        return
    wanted = 1.0
    if cfg.default_scope == 'mmdet':
        wanted = max(OBJECT_SIDE / (data.object_size or 1), SHORT_SIDE / min(data.image_size))
        wanted = min(wanted, LARGEST_GAIN)
    factor = min(wanted / now, 1.0)
    if factor > 1 - TOLERANCE:
        return
    longest = MULTIPLE * ceil(max(data.image_size) * now * factor / MULTIPLE)
    least = _smallest_side(cfg.model)
    for part in _sized_parts(cfg):
        for key in _SIZES:
            if key not in part or part[key] is None:
                continue
            if cfg.default_scope == 'mmseg' and key in _CROPS:
                part[key] = _at_most(part[key], longest)
            else:
                part[key] = _scaled(part[key], factor, least)
        if isinstance(part.get('border'), (tuple, list)):  # of mosaics that are cut to the middle
            part['border'] = tuple(-_scaled(-value, factor, SMALLEST) for value in part['border'])


def _scale_of(cfg: Config, image_size: Sequence[int]) -> float | None:
    """By how much the test pipeline enlarges the median image; None if it does not say."""
    for step in dicts(cfg.test_dataloader.dataset.to_dict()):
        scale = step.get('scale')
        if str(step.get('type')).endswith('Resize') and isinstance(scale, (tuple, list)):
            if not all(image_size) or not all(isinstance(side, int) for side in scale):
                return None
            return min(
                max(scale) / max(image_size), min(scale) / min(image_size)
            )  # fmt: skip
    return None


def _has_fixed_size(cfg: Config) -> bool:
    """Whether anchors or positions are made for one size of images."""
    return any(
        part.get('input_size') or isinstance(part.get('img_size'), (int, list, tuple))
        for part in dicts(cfg.model)
    )


def _sized_parts(cfg: Config) -> Iterator[dict]:
    loaders = [cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test')]
    hooks = [hook for hook in cfg.get('custom_hooks') or [] if 'switch_pipeline' in hook]
    yield from dicts([*loaders, *hooks, cfg.get('tta_pipeline')])
    yield from dicts(cfg.model.get('data_preprocessor'))
    if (cfg.model.get('test_cfg') or {}).get('mode') == 'slide':
        yield cfg.model.test_cfg


def _smallest_side(model: dict) -> int:
    """Of images, so that the maps of a two-stage transformer have a place for each query."""
    queries = 0.0
    if model.get('as_two_stage'):
        queries = model.get('num_queries', 0) * model.get('dense_topk_ratio', 1)
    return max(SMALLEST, MULTIPLE * ceil(sqrt(queries / PLACES) / MULTIPLE))


def _scaled(value: Any, factor: float, least: int) -> Any:
    """Sides of images, whole multiples of 32; shares of an image stay."""
    if isinstance(value, (tuple, list)):
        return type(value)(_scaled(item, factor, least) for item in value)
    if isinstance(value, int) and value > MULTIPLE:
        return max(MULTIPLE * round(value * factor / MULTIPLE), least)
    return value


def _at_most(value: Any, longest: int) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_at_most(item, longest) for item in value)
    return min(value, max(longest, SMALLEST)) if isinstance(value, int) else value


def fit_length(cfg: Config, num_images: int) -> None:
    """Train long enough on few images, and not for ever.

    A config in epochs gets more of them where these are fewer than 2000 iterations, one in
    iterations fewer of them where these are more than 300 epochs (and more than 2000 iterations).
    Its schedule keeps its shape.

    Args:
        cfg: Changed in place.
        num_images: For training.
    """
    steps = ceil(num_images / cfg.train_dataloader.batch_size)  # of an epoch
    train_cfg, hooks = cfg.train_cfg, cfg.get('default_hooks') or {}
    epochs = train_cfg.get('max_epochs')
    if epochs:
        new = max(epochs, min(EPOCHS, ceil(ITERATIONS / steps)))
        train_cfg.max_epochs, factor, end = new, new / epochs, new * steps
        interval = max(1, new // VALIDATIONS)
    else:
        old = train_cfg.max_iters
        end = min(old, max(ITERATIONS, EPOCHS * steps))
        train_cfg.max_iters, factor, interval = end, end / old, max(1, end // VALIDATIONS)
    train_cfg.val_interval = interval
    checkpoint = hooks.get('checkpoint')
    if checkpoint and checkpoint.get('interval', -1) > 0:
        checkpoint['interval'] = interval
    if train_cfg.get('dynamic_intervals'):
        train_cfg.dynamic_intervals = [
            (round(begin * factor), every) for begin, every in train_cfg.dynamic_intervals
        ]
    for scheduler in _schedulers(cfg):
        _stretch(scheduler, factor, bool(epochs) == scheduler.get('by_epoch', True), end)
    for hook in cfg.get('custom_hooks') or []:
        for key in ('switch_epoch', 'num_last_epochs'):
            if key in hook:
                hook[key] = max(1, round(hook[key] * factor))


def _schedulers(cfg: Config) -> list[dict]:
    schedulers = cfg.get('param_scheduler') or []
    return [schedulers] if isinstance(schedulers, dict) else list(schedulers)


def _stretch(scheduler: dict, factor: float, whole: bool, end: int) -> None:
    """Move the times of a scheduler; a warm-up in iterations takes a tenth of the run at most."""
    for key in ('begin', 'end', 'T_max', 'milestones', 'step_size'):
        value = scheduler.get(key)
        if value is None:
            continue
        if whole:
            moved = [max(round(item * factor), 1) if item else 0 for item in _listed(value)]
        else:
            moved = [min(item, end // 10) for item in _listed(value)]
        scheduler[key] = moved if isinstance(value, (list, tuple)) else moved[0]


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
