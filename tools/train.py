"""Train a detector, segmentor or classifier: python tools/train.py CONFIG.

On your own data, for half an hour: python tools/train.py CONFIG --data FOLDER --minutes 30.
"""

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmlocalattn.command_line import add_common_arguments, add_data_arguments, one_line_errors

if TYPE_CHECKING:
    from mmengine.config import Config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a detector, segmentor or classifier.')
    add_common_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument(
        '--minutes',
        type=float,
        metavar='N',
        help='end after N minutes, evaluation included: the clock decides on the iterations, the '
        'schedule and the evaluations',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='continue from CKPT, or from the last whole checkpoint in the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision; on a CPU bfloat16')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size'
    )
    return parser.parse_args(argv)


def build_config(args: argparse.Namespace) -> 'Config':
    """The config file with the command line applied."""
    from mmlocalattn.training import (
        apply_resume,
        check_run,
        enable_amp,
        enable_auto_scale_lr,
        run_config_of,
    )
    from mmlocalattn.training.arguments import data_of, options_of
    from mmlocalattn.training.data_check import check_sample
    from mmlocalattn.training.recipe import fit_recipe

    cfg = run_config_of(args)
    check_run(cfg, 'train')
    if args.amp:
        enable_amp(cfg)
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg)
    number = data_of(args, cfg).splits['train'].num_images if args.data else None
    fit_recipe(cfg, number, args.minutes, options_of(args))
    check_sample(cfg, ('train', 'val'))
    if args.resume:
        apply_resume(cfg, args.resume)
    return cfg


def main(argv: Sequence[str] | None = None) -> None:
    started = time.monotonic()
    args = parse_args(argv)
    with one_line_errors():
        from mmlocalattn.training.arguments import default_work_dir
        from mmlocalattn.training.one_training import one_training, stops_at_once

        work_dir = str(args.work_dir or default_work_dir(args))
    with one_training() as hold, stops_at_once(work_dir):
        with one_line_errors():
            if args.data:  # which is prepared in there
                hold(work_dir)
            cfg = build_config(args)
            hold(cfg.work_dir)
        with stops_at_once(cfg.work_dir):  # that a config may name
            train(args, cfg, started)


def train(args: argparse.Namespace, cfg: 'Config', started: float) -> None:
    from mmlocalattn.memory import keep_freed_memory
    from mmlocalattn.training import build_runner, run_errors, start_clock
    from mmlocalattn.visualisation.training_report import register_report

    keep_freed_memory()
    with run_errors(cfg.filename):
        runner = build_runner(cfg)
        if args.data or args.minutes:
            register_report(runner)
        start_clock(runner, started)
        runner.train()


if __name__ == '__main__':
    main()
