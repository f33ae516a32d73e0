"""What the model of a config costs: multiply-adds and parameters, before and after a swap.

Counted is what MMEngine's get_model_complexity_info counts for one image at test time:
convolutions, matrix products, attention windows, norms and resizing. Of a two-stage detector this
includes the box heads on as many proposals as the config lets through and the mask heads on as many
detections as it keeps (mostly 1000 and 100). The models and images are shapes without values, so
that the counts take seconds and do not depend on the weights, the picture or the machine; a model
whose course needs values, as deformable attention does, computes for once with random weights.
Parts whose parameters the prediction did not touch are named.
"""

import copy
from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from mmlocalattn.adapt.dry_run import dry_run, stopped_in
from mmlocalattn.adapt.nodes import channels_of

IMAGE_SIZES = {'mmdet': (800, 1280), 'mmseg': (512, 2048), 'mmpretrain': (224, 224)}
"""Height and width of the image, by the package of the config: the protocols of the papers."""


class Complexity(NamedTuple):
    """What a model does for one image.

    Attributes:
        shape: Height and width of the image.
        flops: Multiply-adds.
        params: Number of parameters.
        not_counted: Parts that have parameters and took no part in the prediction, as those that
            are for training alone: names in the model.
    """

    shape: tuple[int, int]
    flops: int
    params: int
    not_counted: tuple[str, ...] = ()


def model_complexity(cfg: Config, shape: tuple[int, int] | None = None) -> Complexity:
    """Count what the model of a config does for one image.

    Args:
        cfg: Of mmdet, mmsegmentation or mmpretrain.
        shape: Height and width of the image; that of the papers if None. The image is taken as it
            is, without the padding that a data preprocessor would add.

    Raises:
        ValueError: If there is no shape, and the config is of another package; if the model does
            not build, or a part of it cannot predict here: names it.
    """
    scope = cfg.get('default_scope', 'mmengine')
    if shape is None and scope not in IMAGE_SIZES:
        raise ValueError(
            f'default_scope is {scope!r}: give the shape of the image, only that for '
            f'{", ".join(IMAGE_SIZES)} is known'
        )
    height, width = shape or IMAGE_SIZES[scope]
    init_default_scope(scope)
    try:
        return _count(cfg, height, width, 'meta')
    except _Stopped:  # where values are needed
        return _count(cfg, height, width, 'cpu')


class _Stopped(ValueError):
    """A model that cannot be counted; the message says why."""


def _count(cfg: Config, height: int, width: int, device: str) -> Complexity:
    images = torch.zeros(1, channels_of(cfg), height, width, device=device)
    model = _build(cfg, device)  # first: that imports the operators, whose formulas are asked for
    counter = FlopCounterMode(display=False, custom_mapping=_ELEMENTWISE)
    touched = _Touched()
    try:
        with torch.no_grad(), counter, touched:
            dry_run(model, images)
    except Exception as error:  # each model has its own
        raise _Stopped(
            f'{cfg.filename}: the multiply-adds cannot be counted, its part '
            f'{stopped_in(model, error)} does not predict on a CPU for {height} x {width}: '
            f'{_one_line(error)}'
        ) from error
    flops = counter.get_total_flops() // 2  # PyTorch counts a multiply-add as two
    params = sum(parameter.numel() for parameter in model.parameters())
    return Complexity((height, width), flops, params, tuple(_untouched(model, touched.seen)))


def _build(cfg: Config, device: str) -> Any:
    """The model of a config; for ``'meta'`` without weights, unless it is built from numbers."""
    try:
        with torch.device(device):
            model = MODELS.build(copy.deepcopy(cfg.model))
    except Exception as error:  # a package that is missing, a weight that cannot be loaded
        if device != 'cpu':
            return _build(cfg, 'cpu').to(device)
        raise ValueError(f'{cfg.filename}: the model does not build: {_one_line(error)}') from error
    # The counter would ask for gradients.
    return revert_sync_batchnorm(model).eval().requires_grad_(False)


def _one_line(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())


class _Touched(TorchDispatchMode):
    """Notes the parameters that operators take."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        for value in tree_flatten((args, kwargs))[0]:
            if isinstance(value, nn.Parameter):
                self.seen.add(id(value))
        return func(*args, **(kwargs or {}))


def _untouched(module: nn.Module, seen: set[int], name: str = '') -> Iterator[str]:
    """The outermost parts of which no parameter was seen, and single parameters."""
    parameters = [id(parameter) for parameter in module.parameters()]
    if not seen.intersection(parameters):
        if parameters:
            yield name
        return
    prefix = f'{name}.' if name else ''
    for key, parameter in module.named_parameters(recurse=False):
        if id(parameter) not in seen:
            yield f'{prefix}{key}'
    for key, child in module.named_children():
        yield from _untouched(child, seen, f'{prefix}{key}')


def _per_input(multiply_adds: int) -> Callable[..., int]:
    """Formula of an operator that takes so many multiply-adds for each element of its input."""
    return lambda shape, *args, **kwargs: 2 * multiply_adds * prod(shape)


def _per_output(multiply_adds: int) -> Callable[..., int]:
    return lambda *args, out_shape, **kwargs: 2 * multiply_adds * prod(out_shape)


# MMEngine's estimates of what PyTorch's counter leaves out. PyTorch takes operators apart unless it
# also finds their overload.
_ELEMENTWISE = {
    key: formula
    for packet, formula in {
        torch.ops.aten.native_batch_norm: _per_input(2),
        torch.ops.aten.native_group_norm: _per_input(5),
        torch.ops.aten.native_layer_norm: _per_input(5),
        torch.ops.aten.upsample_nearest2d: _per_output(1),
        torch.ops.aten.upsample_bilinear2d: _per_output(4),
    }.items()
    for key in (packet, packet.default)
}
