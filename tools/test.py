"""Test a detector, segmentor or classifier: python tools/test.py CONFIG CHECKPOINT.

In the place of the checkpoint may stand a file of tools/export.py: CONFIG FILE.onnx.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmlocalattn.command_line import (
    add_common_arguments,
    add_dtype_argument,
    one_line_errors,
    output_folder,
)

if TYPE_CHECKING:
    from mmengine.config import Config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test a detector, segmentor or classifier.')
    add_common_arguments(parser)
    parser.add_argument(
        'checkpoint',
        help='checkpoint file, or what tools/export.py made of one: .onnx, .xml, .pt2 or .pt',
    )
    add_dtype_argument(parser)
    parser.add_argument(
        '--allow-partial',
        action='store_true',
        help='test with what fits of a checkpoint of another model, and the rest random',
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='F',
        help='save the predictions: a .pkl file, or for segmentation a folder of index maps',
    )
    parser.add_argument(
        '--show-dir',
        type=output_folder,
        metavar='D',
        help='draw the predictions (of the first process) into this folder',
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test every image flipped, too, and merge the predictions',
    )
    parser.add_argument(
        '--tta-scales',
        type=float,
        nargs='+',
        default=(),
        metavar='S',
        help='with --tta: at these times the size of the config, as 0.75 1 1.25',
    )
    args = parser.parse_args(argv)
    if args.tta_scales and not args.tta:
        parser.error('--tta-scales needs --tta')
    return args


def build_config(args: argparse.Namespace) -> 'Config':
    """The config file with the command line applied."""
    from mmlocalattn.export.run_file import is_exported_file
    from mmlocalattn.training import (
        check_run,
        draw_predictions,
        read_checkpoint,
        run_config_of,
        save_predictions,
        set_dtype,
    )
    from mmlocalattn.training.data_check import check_sample
    from mmlocalattn.training.test_time import enable_test_time_augmentation

    cfg = run_config_of(args)
    exported = is_exported_file(args.checkpoint)
    if not exported:
        read_checkpoint(args.checkpoint, mmap=True)
    check_run(cfg, 'test')
    check_sample(cfg, ('test',))
    if exported:
        from mmlocalattn.export.file_models import use_file

        for option in ('dtype', 'tta', 'allow_partial'):
            if getattr(args, option):
                raise ValueError(
                    f'--{option.replace("_", "-")} is for checkpoints, {args.checkpoint!r} is an '
                    'exported file'
                )
        cfg.pop('model_dtype', None)
        use_file(cfg, args.checkpoint)
    else:
        cfg.load_from = args.checkpoint
    if args.dtype:
        set_dtype(cfg, args.dtype)
    if args.tta:
        enable_test_time_augmentation(cfg, args.tta_scales)
    if args.show_dir:
        draw_predictions(cfg, str(args.show_dir))
    if args.out:
        save_predictions(cfg, str(args.out))
    return cfg


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors():
        cfg = build_config(args)
    from mmlocalattn.memory import keep_freed_memory
    from mmlocalattn.training import build_runner, run_errors

    keep_freed_memory()
    with run_errors(cfg.filename):
        build_runner(cfg, args.allow_partial).test()


if __name__ == '__main__':
    main()
