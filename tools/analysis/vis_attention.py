"""Draw where the local attention of a model looks, for chosen points of an image.

Into the folder go a PNG file for each point and stage, and attention.html: a page that shows the
attention of any pixel under the pointer and needs nothing else, no network either. What is drawn
are the weights that the layers of the model apply to this image, both steps of sparse scan
attention multiplied out.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from numpy.typing import NDArray
from torch import Tensor, nn

from mmlocalattn.training import add_config_arguments, allow_mmengine_checkpoints, config_of
from mmlocalattn.visualisation import record_attention
from mmlocalattn.visualisation.attention import Attention
from mmlocalattn.visualisation.figure import draw_stage
from mmlocalattn.visualisation.page import Layer, write_page

MULTIPLE = 32  # of pixels in the sides of the resized image, so that cells of maps are whole


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n')[0],
        usage='%(prog)s CONFIG [CKPT] IMAGE --out DIR [--points X,Y ...] [options]',
    )
    add_config_arguments(parser)
    parser.add_argument('checkpoint', nargs='?', help='weights; without it they are random')
    parser.add_argument('image', help='image file')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the pictures')
    parser.add_argument(
        '--points',
        nargs='+',
        type=point,
        metavar='X,Y',
        help='queries, in pixels of the image from its top left corner; default its centre',
    )
    parser.add_argument('--stages', nargs='+', type=int, metavar='I', help='default all, from 0')
    parser.add_argument(
        '--blocks',
        nargs='+',
        metavar='J',
        help="blocks of each stage, from 0, or 'down' for the step down to it; default the last "
        'two with local attention',
    )
    parser.add_argument('--heads', nargs='+', type=int, metavar='N', help='default all, from 0')
    parser.add_argument(
        '--short-side',
        type=int,
        default=224,
        metavar='PIXELS',
        help='shorter side that the model sees (default: %(default)s)',
    )
    parser.add_argument(
        '--max-mb',
        type=float,
        default=8,
        metavar='MB',
        help='bound on attention.html; it leaves out queries to stay below (default: %(default)s)',
    )
    return parser.parse_intermixed_args(argv)


def point(text: str) -> tuple[int, int]:
    x, y = text.split(',')
    return int(x), int(y)


def read_image(path: str) -> NDArray[np.uint8]:
    """(H, W, 3), BGR.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'image {path!r} does not exist')
    image = cv2.imread(path)
    if image is None:
        raise ValueError(f'{path!r} is no image that OpenCV reads: give a PNG or JPEG file')
    return image


def check_points(points: Sequence[tuple[int, int]], image: NDArray[np.uint8]) -> None:
    height, width = image.shape[:2]
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f'point {x},{y} is outside the image: x must be in 0..{width - 1}, '
                f'y in 0..{height - 1}'
            )


def prepare(image: NDArray[np.uint8], short_side: int, cfg: Config) -> Tensor:
    """The image as the model sees it, (1, 3, H, W).

    Args:
        image: (H, W, 3), BGR.
        short_side: Of the result; both sides are rounded to multiples of 32.
        cfg: Its data preprocessor gives mean, deviation and the order of the channels.
    """
    if short_side < MULTIPLE:
        raise ValueError(f'--short-side must be at least {MULTIPLE}, got {short_side}')
    scale = short_side / min(image.shape[:2])
    height, width = (max(round(side * scale / MULTIPLE), 1) * MULTIPLE for side in image.shape[:2])
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    options = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if options.get('bgr_to_rgb') or options.get('to_rgb'):
        resized = resized[..., ::-1]
    if options.get('mean') is not None:
        resized = (resized - np.float32(options['mean'])) / np.float32(options['std'])
    return torch.from_numpy(np.ascontiguousarray(resized)).permute(2, 0, 1)[None]


def build_backbone(cfg: Config, checkpoint: str | None) -> nn.Module:
    """The backbone of a config, with the weights of a checkpoint or random ones.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the config has no backbone, or the checkpoint is of another one.
    """
    if 'backbone' not in cfg.get('model', {}):
        raise ValueError(f'config {cfg.filename!r} has no model.backbone')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    torch.manual_seed(0)
    backbone = revert_sync_batchnorm(MODELS.build({**cfg.model.backbone, 'init_cfg': None}))
    if checkpoint is not None:
        load_weights(backbone, checkpoint)
    backbone.eval()  # not in one line: some backbones' train() returns nothing
    return backbone


def load_weights(backbone: nn.Module, path: str) -> None:
    """Load what a checkpoint has under ``backbone.``, all but the norms of the output maps."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f'checkpoint {path!r} does not exist')
    content = torch.load(path, map_location='cpu', weights_only=True)
    state = content.get('state_dict', content)
    prefix = 'backbone.'
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    try:
        result = backbone.load_state_dict(own, strict=False)
    except RuntimeError as error:  # of shapes
        raise ValueError(f'checkpoint {path!r} is not of this config: {error}') from None
    missing, unexpected = (
        [name for name in names if not name.startswith('output_norms.')]
        for names in (result.missing_keys, result.unexpected_keys)
    )
    if missing or unexpected:
        raise ValueError(
            f'checkpoint {path!r} is not of this config: under {prefix!r} it lacks {missing[:3]} '
            f'and has {unexpected[:3]} besides; tools/convert_checkpoint.py converts released ones'
        )


def select(
    records: Sequence[Attention],
    stages: Sequence[int] | None,
    blocks: Sequence[str] | None,
    heads: Sequence[int] | None,
) -> list[Layer]:
    """The layers to draw, each with its heads.

    Raises:
        ValueError: If a stage, block or head is in no layer.
    """
    _check('--stages', stages, {record.stage for record in records})
    chosen = [record for record in records if stages is None or record.stage in stages]
    if blocks is None:
        chosen = [
            record
            for stage in sorted({record.stage for record in chosen})
            for record in [record for record in chosen if record.stage == stage][-2:]
        ]
    else:
        _check('--blocks', blocks, {record.block for record in chosen})
        chosen = [record for record in chosen if record.block in blocks]
    _check('--heads', heads, {head for record in chosen for head in range(record.num_heads)})
    layers = [
        (record, [head for head in range(record.num_heads) if heads is None or head in heads])
        for record in chosen
    ]
    return [layer for layer in layers if layer[1]]


def _check(option: str, values: Sequence | None, valid: set) -> None:
    unknown = [value for value in values or () if value not in valid]
    if unknown:
        names = ', '.join(str(value) for value in sorted(valid, key=lambda v: (len(str(v)), v)))
        raise ValueError(
            f'{option} {unknown[0]}: what is chosen has local attention only in {names}'
        )


def run(args: argparse.Namespace) -> list[Path]:
    """Draw everything.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: If the config, the checkpoint or the image does not exist.
        ModuleNotFoundError: If a package the config needs is not installed.
        ValueError: If an argument does not fit the config or the image; says which and why.
    """
    image = read_image(args.image)
    points = args.points or [(image.shape[1] // 2, image.shape[0] // 2)]
    check_points(points, image)
    cfg = config_of(args)
    backbone = build_backbone(cfg, args.checkpoint)
    records = record_attention(backbone, prepare(image, args.short_side, cfg))
    if not records:
        raise ValueError(
            f'{type(backbone).__name__}, the backbone of {args.config!r}, has no local attention '
            'to draw; --backbone ssvit_t puts one with it in its place'
        )
    layers = select(records, args.stages, args.blocks, args.heads)
    name = Path(args.config).stem + (f' with {args.backbone}' if args.backbone else '')
    weights = Path(args.checkpoint).name if args.checkpoint else 'random weights'
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for stage in sorted({attention.stage for attention, _ in layers}):
        of_stage = [layer for layer in layers if layer[0].stage == stage]
        for x, y in points:
            files.append(out / f'stage{stage}_{x}_{y}.png')
            title = f'{name}, {weights}: stage {stage}, point {x}, {y}'
            draw_stage(files[-1], of_stage, image, (x, y), title)
    files.append(out / 'attention.html')
    limit = int(args.max_mb * 1e6)
    kept = write_page(files[-1], layers, image, points, name, weights, limit)
    for (attention, _), queries in zip(layers, kept):
        if queries != attention.query_size:
            print(
                f'stage {attention.stage}, block {attention.block}: the page has {queries} of '
                f'{attention.query_size} rows and columns, to stay below --max-mb {args.max_mb:g}'
            )
    return files


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    allow_mmengine_checkpoints()
    try:
        files = run(args)
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise SystemExit(f'error: {error}') from None
    print(*files, sep='\n')


if __name__ == '__main__':
    main()
