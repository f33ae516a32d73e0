"""Print the multiply-adds and parameters of the models of configs.

Counted is what MMEngine's get_model_complexity_info counts for one image at test time:
convolutions, matrix products, attention windows, norms and resizing. Of a two-stage detector this
includes the box heads on as many proposals as the config lets through and the mask heads on as many
detections as it keeps (mostly 1000 and 100). Nothing is computed: the models and images are shapes
without values, so that the counts take seconds and do not depend on the weights, the picture or the
machine.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmlocalattn.training import add_config_arguments, config_of

# Height and width of the image, by the package that the config is for: the protocols of the papers.
SHAPES = {'mmdet': (800, 1280), 'mmseg': (512, 2048), 'mmpretrain': (224, 224)}


def per_input(multiply_adds: int) -> Callable:
    """Formula of an operator that takes so many multiply-adds for each element of its input."""
    return lambda shape, *args, **kwargs: 2 * multiply_adds * prod(shape)


def per_output(multiply_adds: int) -> Callable:
    return lambda *args, out_shape, **kwargs: 2 * multiply_adds * prod(out_shape)


# MMEngine's estimates of what PyTorch's counter leaves out. PyTorch takes operators apart unless it
# also finds their overload.
ELEMENTWISE = {
    key: formula
    for packet, formula in {
        torch.ops.aten.native_batch_norm: per_input(2),
        torch.ops.aten.native_group_norm: per_input(5),
        torch.ops.aten.native_layer_norm: per_input(5),
        torch.ops.aten.upsample_nearest2d: per_output(1),
        torch.ops.aten.upsample_bilinear2d: per_output(4),
    }.items()
    for key in (packet, packet.default)
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add_config_arguments(parser, many=True)
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='of the image; default 800 1280 for mmdet, 512 2048 for mmseg, 224 224 for mmpretrain',
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object per config')
    return parser.parse_args(argv)


def count(cfg: Config, shape: tuple[int, int] | None = None) -> dict:
    """Count what the model of a config does for one image.

    Args:
        cfg: Of mmdet, mmsegmentation or mmpretrain.
        shape: Height and width of the image; that of the papers if None. The image is taken as it
            is, without the padding that a data preprocessor would add.

    Returns:
        ``shape``, ``flops`` (multiply-adds) and ``params``.
    """
    scope = cfg.get('default_scope', 'mmengine')
    init_default_scope(scope)
    height, width = shape or SHAPES[scope]
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval().to('meta')
    images = torch.empty(1, 3, height, width, device='meta')
    counter = FlopCounterMode(display=False, custom_mapping=ELEMENTWISE)
    with torch.no_grad(), counter:
        run(model, images)
    flops = counter.get_total_flops() // 2  # PyTorch counts a multiply-add as two
    params = sum(parameter.numel() for parameter in model.parameters())
    return dict(shape=[height, width], flops=flops, params=params)


def run(model: nn.Module, images: Tensor) -> None:
    """Whatever of a test does not depend on weights, for (1, 3, H, W) images."""
    if hasattr(model, 'roi_head'):
        run_two_stage_detector(model, images)
    elif hasattr(model, 'encode_decode'):
        model.encode_decode(images, [dict(img_shape=images.shape[2:])])  # resizes the logits too
    else:
        model(images)


def run_two_stage_detector(model: nn.Module, images: Tensor) -> None:
    """All heads on the largest number of regions: those found would depend on the weights."""
    maps = model.extract_feat(images)
    model.rpn_head(maps)
    for kind, number in (
        ('bbox', model.test_cfg.rpn.max_per_img),
        ('mask', model.test_cfg.rcnn.max_per_img),
    ):
        heads = getattr(model.roi_head, f'{kind}_head', None)
        extractors = getattr(model.roi_head, f'{kind}_roi_extractor', None)
        for head, extractor in zip(stages(heads), stages(extractors)):
            size = extractor.roi_layers[0].output_size
            head(images.new_empty(number, extractor.out_channels, *size))


def stages(module: nn.Module | None) -> Iterator[nn.Module]:
    """The heads of a cascade, the one of a plain detector, or nothing."""
    if isinstance(module, nn.ModuleList):
        yield from module
    elif module is not None:
        yield module


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel('ERROR')  # its stream is the same
    for path in args.configs:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what --backbone has changed
                cfg = config_of(args, path)
        except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
            raise SystemExit(f'error: {error}') from None
        result = dict(config=Path(path).stem) | count(cfg, args.shape)
        if args.json:
            print(json.dumps(result))
        else:
            height, width = result['shape']
            print(
                f'{result["config"]}: {result["flops"] / 1e9:.1f} G multiply-adds, '
                f'{result["params"] / 1e6:.2f} M parameters at {height} x {width}'
            )


if __name__ == '__main__':
    main()
