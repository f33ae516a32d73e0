"""A model in bfloat16 where that pays, and in float32 where digits count.

Autocast around a whole detector fails in operators that know no bfloat16 (mmcv's RoIAlign and NMS),
and rounds the corners of a box in an image of 1344 pixels to steps of 8. So the parts that hold
nearly all multiply-adds run in autocast, one by one, and hand on float32: backbone, neck, and
``forward`` of every head. Anchors, boxes, RoIAlign, NMS and losses stay as they are. Nothing is
scaled: bfloat16 has the exponents of float32.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

DTYPES = ('float32', 'bfloat16')

_UNITS = {'avx512_bf16', 'amx_bf16', 'avx_ne_convert', 'bf16', 'svebf16'}
"""Flags of /proc/cpuinfo: of x86, then of Arm."""


def autocast_parts(model: nn.Module, dtype: str, only_in_training: bool = False) -> list[str]:
    """Let the parts of a model run in a dtype, here and wherever it is moved.

    Args:
        model: Of mmdet, mmsegmentation or mmpretrain; may be wrapped. The ``forward`` of its parts
            is replaced.
        dtype: Of :data:`DTYPES`; ``'float32'`` changes nothing.
        only_in_training: In ``eval`` mode it stays in float32, as with MMEngine's AMP on GPUs.

    Returns:
        The names of the parts.

    Raises:
        ValueError: If no part of the model is a backbone, a neck or a head.
    """
    if dtype == 'float32':
        return []
    parts = {name: part for name, part in model.named_modules() if _is_part(name, part)}
    if not parts:
        raise ValueError(f'{type(model).__name__} has no backbone, neck or head to run in {dtype}')
    for part in parts.values():
        part.forward = _autocasted(part, getattr(torch, dtype), only_in_training)
    return list(parts)


class TrainDtypeHook(Hook):
    """Trains a model with its parts in a dtype, see :func:`autocast_parts`.

    Args:
        dtype: Of :data:`DTYPES`.
    """

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def before_train(self, runner: Runner) -> None:
        """Wrap the parts, and say which."""
        parts = autocast_parts(runner.model, self.dtype, only_in_training=True)
        if parts:
            runner.logger.info(f'Training in {self.dtype}, losses in float32: {", ".join(parts)}.')


def has_bfloat16_units() -> bool:
    """Whether products of bfloat16 are faster than those of float32 on this CPU (Linux says so)."""
    info = Path('/proc/cpuinfo')
    if not info.exists():
        return False
    lines = info.read_text().lower().splitlines()
    flags = next((line for line in lines if line.startswith(('flags', 'features'))), '')
    return not _UNITS.isdisjoint(flags.split())


def _is_part(name: str, module: nn.Module) -> bool:
    """Heads of a cascade are called ``bbox_head.0`` and so on; ``roi_head`` holds other heads."""
    names = [piece for piece in name.split('.') if not piece.isdigit()]
    if not names or isinstance(module, nn.ModuleList) or type(module).forward is _NO_FORWARD:
        return False
    return names[-1] in ('backbone', 'neck', 'head') or (
        names[-1].endswith('_head') and names[-1] != 'roi_head'
    )


_NO_FORWARD = nn.Module.forward


def _autocasted(part: nn.Module, dtype: torch.dtype, only_in_training: bool) -> Any:
    forward = part.forward

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if only_in_training and not part.training:
            return forward(*args, **kwargs)
        tensor = next(_tensors((args, kwargs)), None)
        device = 'cpu' if tensor is None else tensor.device.type
        with torch.autocast(device, dtype):
            outputs = forward(*args, **kwargs)
        return _as_float32(outputs, dtype)

    return run


def _tensors(value: Any) -> Any:
    """The tensors in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _as_float32(value: Any, dtype: torch.dtype) -> Any:
    """The same nest of tuples, lists and dicts, what has the dtype as float32."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype == dtype else value
    if isinstance(value, dict):
        return type(value)({key: _as_float32(item, dtype) for key, item in value.items()})
    if isinstance(value, tuple) and hasattr(value, '_fields'):
        return type(value)(*(_as_float32(item, dtype) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_as_float32(item, dtype) for item in value)
    return value
