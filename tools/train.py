"""Train a detector, segmentor or classifier: python tools/train.py CONFIG."""

import argparse
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmlocalattn.data import check_data
from mmlocalattn.training import (
    ExactResumeHook,
    adapt_to_device,
    add_common_arguments,
    allow_mmengine_checkpoints,
    config_of,
    last_whole_checkpoint,
    read_seed,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a detector, segmentor or classifier.')
    add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='continue from CKPT, or from the last whole checkpoint in the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size'
    )
    return parser.parse_args(argv)


def build_config(args: argparse.Namespace) -> Config:
    """The config file with the command line applied.

    Raises:
        FileNotFoundError: If the config, the data or the checkpoint to resume from does not exist.
        ModuleNotFoundError: If a package the config needs is not installed.
        ValueError: If the backbone cannot be replaced, or the config does not say for which batch
            size its learning rate is.
    """
    cfg = config_of(args)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if args.amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(
                f'--auto-scale-lr needs auto_scale_lr.base_batch_size in {args.config!r}'
            )
        cfg.auto_scale_lr.enable = True
    check_data(cfg, ('train', 'val'))
    if args.resume:
        apply_resume(cfg, args.resume)
    return cfg


def apply_resume(cfg: Config, checkpoint: str) -> None:
    """Set the config to continue from a checkpoint, with the order of the images of the first run.

    Args:
        cfg: Changed in place.
        checkpoint: A file, or ``'auto'`` for the last whole checkpoint in the work dir.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file was not written to its end.
    """
    if checkpoint == 'auto':
        found = last_whole_checkpoint(cfg.work_dir)
        if found is None:
            print(f'No checkpoint in {cfg.work_dir}: training from the start.')
            return
        checkpoint = found
    elif not os.path.isfile(checkpoint):
        raise FileNotFoundError(f'checkpoint {checkpoint!r} does not exist')
    elif not zipfile.is_zipfile(checkpoint):
        raise ValueError(
            f'checkpoint {checkpoint!r} is not whole; --resume alone finds one that is'
        )
    print(f'Resuming from {checkpoint}.')
    cfg.resume = True
    cfg.load_from = checkpoint
    cfg.randomness = {**cfg.get('randomness', {}), 'seed': read_seed(checkpoint)}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    allow_mmengine_checkpoints()
    try:
        cfg = build_config(args)
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise SystemExit(f'error: {error}') from None
    adapt_to_device(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.register_hook(ExactResumeHook())
    runner.train()


if __name__ == '__main__':
    main()
