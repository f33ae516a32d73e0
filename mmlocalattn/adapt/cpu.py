"""The parts of a model around its backbone, as they are fastest on a CPU.

Numbers change by rounding alone: the order of sums.
"""

import functools
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmlocalattn.layers.roi_align import roi_align

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def tune_for_cpu(model: nn.Module) -> dict[str, int]:
    """Let necks and heads run channels last, and mmcv's RoIAlign on all cores.

    For inference and training, before or after weights are loaded. On another device RoIAlign is
    mmcv's again.

    Args:
        model: Of mmdet, mmsegmentation or mmpretrain. Changed in place; its weights keep their
            names and values. Wrapped for several processes, it keeps its layout, which gradients
            are sent in.

    Returns:
        How many layers were changed, by what was.
    """
    aligns = [module for module in model.modules() if _is_tunable_roi_align(module)]
    for align in aligns:
        align.forward = functools.partial(_forward, align)
    convolutions = [
        module
        for name, part in model.named_modules()
        if name.rpartition('.')[2] in ('neck', 'rpn_head', 'roi_head', 'bbox_head')
        and not is_model_wrapper(model)
        for module in part.modules()
        if isinstance(module, _CONVOLUTIONS)
    ]
    for convolution in convolutions:
        convolution.to(memory_format=torch.channels_last)
    return {'RoIAlign': len(aligns), 'channels last': len(set(convolutions))}


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
        return type(align).forward(align, input, rois)
    return roi_align(input, rois, align.output_size, align.spatial_scale, align.aligned)
