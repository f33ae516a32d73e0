"""How many images a training step takes: tried on this machine."""

import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from mmlocalattn.adapt.nodes import dicts
from mmlocalattn.adapt.trial import random_batch, small_model

TRIED = 2  # images of the step that is measured on a CPU: batch norms need more than one
MEMORY_SHARE = 0.7  # of what is available: workers and the images of the next batch need some too
OBJECTS = 20  # on each of the random images
ITERATIONS = 100  # that a training by the clock has time for, if two images at once allow it


def fit_batch(cfg: Config, num_images: int, seconds: float | None = None) -> None:
    """Take as many images at once as fit in memory, and scale the learning rate with them.

    With a GPU that is the batch that the learning rate of the config is meant for, or half of it,
    or a quarter, ...: the largest that one step on images of the largest size runs with. Without
    one it is the batch of the config, if memory, and the time if that is limited, allow that many
    times what a step was measured to take: a CPU is no faster with more.

    Args:
        cfg: Changed in place.
        num_images: For training.
        seconds: That the training has; None if it has all it needs.
    """
    loader = cfg.train_dataloader
    usual = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    size = (largest_side(cfg),) * 2
    if get_device() == 'cuda':
        number = min(usual or loader.batch_size, num_images)
        while number > 1 and not _fits_on_gpu(cfg, size, number):
            number //= 2
    else:
        number = min(loader.batch_size, num_images)
        if number > TRIED:
            fitting, took = _try_on_cpu(cfg, size)
            in_time = number if seconds is None else seconds / ITERATIONS / took
            number = max(TRIED, int(min(number, fitting, in_time)))
    if number != loader.batch_size:
        print_log(f'{number} images at once, tried with {size[0]} x {size[1]} pixels', 'current')
    loader.batch_size = number
    if usual:
        cfg.auto_scale_lr.enable = True


def largest_side(cfg: Config) -> int:
    """Of the images that a training pipeline makes, pixels."""
    sides = {'scale': 0, 'crop_size': 0}
    for part in dicts(cfg.train_dataloader.dataset.to_dict()):
        for key, names in (('scale', ('scale', 'scales')), ('crop_size', ('crop_size', 'size'))):
            numbers = [_largest(part.get(name)) for name in names]
            sides[key] = max(sides[key], *numbers)
    return sides['crop_size'] or sides['scale'] or 224


def _largest(value: Any) -> int:
    if isinstance(value, (tuple, list)):
        return max(map(_largest, value), default=0)
    return value if isinstance(value, int) else 0


def _step(cfg: Config, size: tuple[int, int], number: int, device: str) -> None:
    """Loss, gradients and Adam's memory for random images."""
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(small_model(cfg, size[0]))).to(device).train()
    batch = random_batch(cfg, size, number, num_objects=OBJECTS)
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    state = [torch.zeros_like(weight) for weight in model.parameters() for _ in range(2)]
    del state


def _fits_on_gpu(cfg: Config, size: tuple[int, int], number: int) -> bool:
    try:
        _step(cfg, size, number, 'cuda')
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def _try_on_cpu(cfg: Config, size: tuple[int, int]) -> tuple[float, float]:
    """Measure a step.

    Returns:
        The images that memory is enough for, if each takes its share of the step's, and the seconds
        that each took.
    """
    available = _kilobytes('/proc/meminfo', 'MemAvailable')
    before = _kilobytes('/proc/self/status', 'VmHWM')
    began = time.monotonic()
    _step(cfg, size, TRIED, 'cpu')
    took = (time.monotonic() - began) / TRIED
    after = _kilobytes('/proc/self/status', 'VmHWM')
    if available is None or before is None or after is None:
        return float(cfg.train_dataloader.batch_size), took
    return MEMORY_SHARE * available / max((after - before) / TRIED, 1.0), took


def _kilobytes(file: str, name: str) -> float | None:
    """A number that Linux tells of its memory; elsewhere None."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) for line in lines if line.startswith(f'{name}:')), None)
