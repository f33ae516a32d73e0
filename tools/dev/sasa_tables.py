"""Print the tables of parameters and FLOPs of docs/sasa.md: published and computed."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmlocalattn.tables import markdown_table

if TYPE_CHECKING:
    from torch import nn

ROOT = Path(__file__).parents[2]
CLASSES = 1000
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ('convolution', {'conv_stages': 4}),
    ('convolution stem', {}),
    ('attention stem', {'stem': 'attention'}),
)
# model, options, 1e9 FLOPs, 1e6 parameters
TABLE_1 = [
    (f'ResNet-{depth}, {name}', {'depth': depth, **options}, *published)
    for depth, rows in (
        (26, ((4.7, 13.7), (4.5, 10.3), (4.7, 10.3))),
        (38, ((6.5, 19.6), (5.7, 14.1), (6.0, 14.1))),
        (50, ((8.2, 25.6), (7.0, 18.0), (7.2, 18.0))),
    )
    for (name, options), published in zip(VARIANTS, rows)
]
HYBRIDS = [
    ('attention in stages 1-4', {}, 7.0, 18.0),
    ('convolution in 1, attention in 2-4', {'conv_stages': 1}, 7.3, 18.1),
    ('convolution in 1-2, attention in 3-4', {'conv_stages': 2}, 7.5, 18.5),
    ('convolution in 1-3, attention in 4', {'conv_stages': 3}, 8.0, 20.8),
    ('convolution in 1-4', {'conv_stages': 4}, 8.2, 25.6),
]
KERNELS = [
    (f'window {kernel} x {kernel}', {'kernel_size': kernel}, flops, None)
    for kernel, flops in ((3, 6.6), (5, 6.7), (7, 7.0), (9, 7.3), (11, 7.7))
]
# heads and backbone, config, 1e9 FLOPs, 1e6 parameters
TABLE_2 = [
    ('convolution; ResNet-50', 'baseline', 182, 33.4),
    ('convolution; convolution stem', 'convhead_convstem', 173, 25.9),
    ('convolution; attention stem', 'convhead_attnstem', 173, 25.9),
    ('attention; convolution stem', 'attnhead_convstem', 111, 22.0),
    ('attention; attention stem', 'attnhead_attnstem', 110, 22.0),
    ('attention, FPN too; convolution stem', 'attnfpn_attnhead_convstem', 111, 22.0),
    ('attention, FPN too; attention stem', 'attnfpn_attnhead_attnstem', 110, 22.0),
]


def flops_of(model: 'nn.Module', height: int, width: int) -> float:
    """FLOPs as the paper counts them.

    A multiply-add is two, and a position takes three products with every position of its window:
    with the key, with the embedding of the offset, and with the value. PyTorch's counter knows two
    of them, since the operator takes row and column embeddings only once per row and column.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.empty(1, 3, height, width, device='meta'))
    op = torch.ops.mmlocalattn.stand_alone_attention
    return counter.get_total_flops() + counter.get_flop_counts()['Global'].get(op, 0) / 2


def parameters_of(model: 'nn.Module') -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def classifier_row(name: str, options: dict, flops: float, params: float | None) -> list[str]:
    """A line of a table of classifiers, at 224 x 224."""
    import torch

    from mmlocalattn.backbones import SASAResNet

    with torch.device('meta'):
        model = SASAResNet(**options).eval()
    channels = model.out_channels[-1]
    computed = flops_of(model, 224, 224) + 2 * channels * CLASSES
    total = parameters_of(model) + (channels + 1) * CLASSES
    cells = [name, f'{flops:.1f}', f'{computed / 1e9:.2f}']
    return cells if params is None else [*cells, f'{params:.1f}', f'{total / 1e6:.2f}']


def detector_row(name: str, config: str, flops: float, params: float, classes: int) -> list[str]:
    """A line of the table of detectors, at 640 x 640."""
    import torch
    from mmengine.registry import MODELS, init_default_scope

    from mmlocalattn.training import load_config

    cfg = load_config(str(ROOT / 'configs' / f'retinanet_sasa_r50_{config}_150e_coco.py'))
    init_default_scope(cfg.default_scope)
    cfg.model.bbox_head.num_classes = classes
    cfg.model.backbone.norm_cfg.type = 'BN'
    with torch.device('meta'):
        model = MODELS.build(cfg.model).eval()
    computed = flops_of(model, 640, 640) / 1e9
    total = parameters_of(model) / 1e6
    return [name, str(flops), f'{computed:.1f}', f'{params:.1f}', f'{total:.2f}']


def tables() -> dict[str, str]:
    """The tables in Markdown, by title."""
    numbers = ['published GFLOP', 'computed', 'published M parameters', 'computed']
    contents = {
        'Table 1: ImageNet, 224 x 224': (
            ['model', *numbers],
            [classifier_row(*r) for r in TABLE_1],
        ),
        'Hybrids: ResNet-50, convolution stem': (
            ['stages', *numbers],
            [classifier_row(*row) for row in HYBRIDS],
        ),
        'Window: ResNet-50, convolution stem': (
            ['attention', *numbers[:2]],
            [classifier_row(*row) for row in KERNELS],
        ),
        'Table 2: RetinaNet, 640 x 640, 90 classes': (
            ['heads; backbone', *numbers],
            [detector_row(*row, classes=90) for row in TABLE_2],
        ),
    }
    return {title: markdown_table(*content) for title, content in contents.items()}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return argparse.ArgumentParser(description=__doc__).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    parse_args(argv)
    for title, table in tables().items():
        print(f'## {title}\n\n{table}\n')


if __name__ == '__main__':
    main()
