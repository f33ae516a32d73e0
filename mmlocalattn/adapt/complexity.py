"""What the model of a config costs: multiply-adds and parameters, before and after a swap.

Counted is what MMEngine's get_model_complexity_info counts for one image at test time:
convolutions, matrix products, attention windows, norms and resizing. Of a two-stage detector this
includes the box heads on as many proposals as the config lets through and the mask heads on as many
detections as it keeps (mostly 1000 and 100). Nothing is computed: the models and images are shapes
without values, so that the counts take seconds and do not depend on the weights, the picture or the
machine.
"""

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

IMAGE_SIZES = {'mmdet': (800, 1280), 'mmseg': (512, 2048), 'mmpretrain': (224, 224)}
"""Height and width of the image, by the package of the config: the protocols of the papers."""


class Complexity(NamedTuple):
    """What a model does for one image.

    Attributes:
        shape: Height and width of the image.
        flops: Multiply-adds.
        params: Number of parameters.
    """

    shape: tuple[int, int]
    flops: int
    params: int


def model_complexity(cfg: Config, shape: tuple[int, int] | None = None) -> Complexity:
    """Count what the model of a config does for one image.

    Args:
        cfg: Of mmdet, mmsegmentation or mmpretrain.
        shape: Height and width of the image; that of the papers if None. The image is taken as it
            is, without the padding that a data preprocessor would add.

    Raises:
        ValueError: If there is no shape, and the config is of another package.
    """
    scope = cfg.get('default_scope', 'mmengine')
    if shape is None and scope not in IMAGE_SIZES:
        raise ValueError(
            f'default_scope is {scope!r}: give the shape of the image, only that for '
            f'{", ".join(IMAGE_SIZES)} is known'
        )
    height, width = shape or IMAGE_SIZES[scope]
    init_default_scope(scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval().to('meta')
    images = torch.empty(1, 3, height, width, device='meta')
    counter = FlopCounterMode(display=False, custom_mapping=_ELEMENTWISE)
    with torch.no_grad(), counter:
        _run(model, images)
    flops = counter.get_total_flops() // 2  # PyTorch counts a multiply-add as two
    params = sum(parameter.numel() for parameter in model.parameters())
    return Complexity((height, width), flops, params)


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


def _run(model: Any, images: Tensor) -> None:
    """Whatever of a test does not depend on weights, for (1, 3, H, W) images."""
    if hasattr(model, 'roi_head'):
        _run_two_stage_detector(model, images)
    elif hasattr(model, 'encode_decode'):
        model.encode_decode(images, [dict(img_shape=images.shape[2:])])  # resizes the logits too
    else:
        model(images)


def _run_two_stage_detector(model: Any, images: Tensor) -> None:
    """All heads on the largest number of regions: those found would depend on the weights."""
    maps = model.extract_feat(images)
    model.rpn_head(maps)
    for kind, number in (
        ('bbox', model.test_cfg.rpn.max_per_img),
        ('mask', model.test_cfg.rcnn.max_per_img),
    ):
        heads = getattr(model.roi_head, f'{kind}_head', None)
        extractors = getattr(model.roi_head, f'{kind}_roi_extractor', None)
        for head, extractor in zip(_stages(heads), _stages(extractors)):
            size = extractor.roi_layers[0].output_size
            head(images.new_empty(number, extractor.out_channels, *size))


def _stages(module: nn.Module | None) -> Iterator[Any]:
    """The heads of a cascade, the one of a plain detector, or nothing."""
    if isinstance(module, nn.ModuleList):
        yield from module
    elif module is not None:
        yield module
