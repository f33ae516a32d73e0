"""The parts of a detector around its backbone, as they are fastest on a CPU.

Numbers change by rounding alone: sums are taken in another order.
"""

import functools
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmlocalattn.layers.roi_align import roi_align

_READ_STRIDES = {
    *('FPN', 'RPNHead', 'RetinaHead', 'FCNMaskHead'),
    *('BBoxHead', 'ConvFCBBoxHead', 'Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead'),
}
"""Necks and heads of mmdet whose operators are all PyTorch's; compiled ones of mmcv may not."""


def tune_for_cpu(model: nn.Module) -> dict[str, int]:
    """Run mmcv's RoIAlign on all cores, and necks and heads channels last.

    For inference and training, before or after weights are loaded: those keep their names and
    values. On another device RoIAlign is mmcv's again. The layout stays as it is if the model has a
    neck or a head that is not known to follow it, and if it is wrapped for several processes, which
    have agreed on one for gradients.

    Args:
        model: Of mmdet; nothing is changed in others. Changed in place.

    Returns:
        How many layers were changed: ``RoIAlign``, and convolutions ``channels last``.
    """
    aligns = [module for module in model.modules() if _is_tunable_roi_align(module)]
    for align in aligns:
        align.forward = functools.partial(_forward, align)
    convolutions = [] if is_model_wrapper(model) else _convolutions_that_follow(model, aligns)
    for convolution in convolutions:
        convolution.to(memory_format=torch.channels_last)
    return {'RoIAlign': len(aligns), 'channels last': len(convolutions)}


def _convolutions_that_follow(model: nn.Module, aligns: list[Any]) -> list[Any]:
    """Those of necks and heads, if all that gets their maps reads them in any layout."""
    parts = [part for name, part in model.named_modules() if _is_part(name, part)]
    if any(_name(part) not in _READ_STRIDES for part in parts) or any(
        type(module).__module__.startswith('mmcv.ops.') and module not in aligns
        for module in model.modules()
    ):
        return []
    modules = (module for part in parts for module in part.modules())
    return [module for module in modules if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))]


def _is_part(name: str, module: nn.Module) -> bool:
    """A neck, or a head; those of a cascade are called ``bbox_head.0`` and so on."""
    name = name.rstrip('.0123456789')
    is_head = name.endswith('_head') and not name.endswith('roi_head')
    return (is_head or name.endswith('neck')) and not isinstance(module, nn.ModuleList)


def _name(part: nn.Module) -> str:
    """Of the class if it is of mmdet, else empty."""
    return type(part).__name__ if type(part).__module__.startswith('mmdet.models.') else ''


def _is_tunable_roi_align(module: Any) -> bool:
    """Whether it is mmcv's, averages, and takes a sample per pixel."""
    return (
        f'{type(module).__module__}.{type(module).__name__}' == 'mmcv.ops.roi_align.RoIAlign'
        and module.pool_mode == 'avg'
        and module.sampling_ratio <= 0
    )


def _forward(align: Any, input: Tensor, rois: Tensor) -> Tensor:
    """Of mmcv's RoIAlign, a method of which it stands for."""
    is_traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if input.device.type != 'cpu' or input.dtype not in (torch.float32, torch.float64) or is_traced:
        return type(align).forward(align, input.contiguous(), rois)
    return roi_align(input, rois, align.output_size, align.spatial_scale, align.aligned)
