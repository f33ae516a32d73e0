"""Test a detector, segmentor or classifier: python tools/test.py CONFIG CHECKPOINT."""

import argparse
from collections.abc import Sequence

from mmengine.config import Config

from mmlocalattn.data import check_data
from mmlocalattn.training import (
    add_common_arguments,
    build_runner,
    check_run,
    draw_predictions,
    one_line_errors,
    read_checkpoint,
    run_config_of,
    run_errors,
    save_predictions,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test a detector, segmentor or classifier.')
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--allow-partial',
        action='store_true',
        help='test with what fits of a checkpoint of another model, and the rest random',
    )
    parser.add_argument(
        '--out',
        metavar='F',
        help='save the predictions: a .pkl file, or for segmentation a folder of index maps',
    )
    parser.add_argument(
        '--show-dir',
        metavar='D',
        help='draw the predictions (of the first process) into this folder',
    )
    return parser.parse_args(argv)


def build_config(args: argparse.Namespace) -> Config:
    """The config file with the command line applied."""
    cfg = run_config_of(args)
    read_checkpoint(args.checkpoint, mmap=True)
    check_run(cfg, 'test')
    check_data(cfg, ('test',))
    cfg.load_from = args.checkpoint
    if args.show_dir:
        draw_predictions(cfg, args.show_dir)
    if args.out:
        save_predictions(cfg, args.out)
    return cfg


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors():
        cfg = build_config(args)
    with run_errors():
        build_runner(cfg, args.allow_partial).test()


if __name__ == '__main__':
    main()
