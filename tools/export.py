"""Export a model of a config: python tools/export.py CONFIG CKPT --format {onnx,torchscript,pt2}.

Segmentors and classifiers are exported whole, without pre-processing and softmax; of detectors the
backbone and the neck. Files of the formats torchscript and pt2 hold the operators of this package:
`import mmlocalattn.ops` before loading them. They refuse images that they do not serve. An ONNX
file cannot, so let --size name all kinds of images that it is to be used for.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader
from torch import nn

import mmlocalattn.ops  # noqa: F401  (registers the operators)
from mmlocalattn import __version__
from mmlocalattn.export.files import FORMATS, export, exportable
from mmlocalattn.training import (
    add_config_arguments,
    allow_mmengine_checkpoints,
    config_of,
    image_size,
)

SIZES = {'mmpretrain': [(224, 224), (256, 320), (384, 288)]}
"""Default sizes by scope."""
DENSE_SIZES = [(512, 512), (480, 640), (608, 448)]
"""Default sizes of detectors and segmentors."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file')
    parser.add_argument('--random-weights', action='store_true', help='export without a checkpoint')
    parser.add_argument('--format', choices=FORMATS, required=True)
    parser.add_argument('--out', type=Path, help='default: the name of the config')
    parser.add_argument('--part', choices=('model', 'backbone'), default='model')
    parser.add_argument(
        '--size',
        nargs='+',
        type=image_size,
        metavar='HxW',
        help='image sizes on which the file is verified; it takes what lies between the smallest '
        'and the largest height and width, or with one size that alone',
    )
    args = parser.parse_args(argv)
    if (args.checkpoint is None) != args.random_weights:
        parser.error('give either a checkpoint or --random-weights')
    return args


def build(cfg: Config, checkpoint: str | None, part: str) -> nn.Module:
    """The part of the model to export, on the CPU.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the model has no such part, or the checkpoint lacks some of its weights.
    """
    scope = cfg.get('default_scope', 'mmengine')
    init_default_scope(scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    module = exportable(model, scope, part)
    if checkpoint is not None:
        content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
        missing, _ = model.load_state_dict(content.get('state_dict', content), strict=False)
        needed = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
        state = model.state_dict(keep_vars=True)
        missing = [name for name in missing if id(state[name]) in needed]
        if missing:
            raise ValueError(f'{checkpoint} lacks {len(missing)} weights, the first: {missing[:3]}')
    return module


def describe(cfg: Config, args: argparse.Namespace, sizes: Sequence[tuple[int, int]]) -> dict:
    """What a user of the file must know."""
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    keys = ('mean', 'std', 'bgr_to_rgb', 'to_rgb', 'pad_size_divisor')
    return {
        'mmlocalattn': __version__,
        'torch': torch.__version__,
        'config': Path(args.config).name,
        'part': args.part,
        'sizes': [list(size) for size in sizes],
        'preprocessing': {key: preprocessor[key] for key in keys if key in preprocessor},
        'requires': [] if args.format == 'onnx' else ['import mmlocalattn.ops'],
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    allow_mmengine_checkpoints()
    try:
        cfg = config_of(args)
        sizes = args.size or SIZES.get(cfg.get('default_scope'), DENSE_SIZES)
        if args.format == 'torchscript' and not args.size:
            sizes = sizes[:1]
        out = args.out or Path(args.config).with_suffix(FORMATS[args.format][1]).name
        module = build(cfg, args.checkpoint, args.part)
        meta = describe(cfg, args, sizes)
        export(module, Path(out), args.format, sizes, meta, partial(print, flush=True))
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise SystemExit(f'error: {error}') from None
    print(out)


if __name__ == '__main__':
    main()
