"""The command lines that the tools share."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, DictAction

from mmlocalattn.adapt import BACKBONES, describe_changes, swap_backbone
from mmlocalattn.training.config import load_config, merge_options


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share; :func:`run_config_of` reads them."""
    add_config_arguments(parser)
    parser.add_argument(
        '--work-dir', help='folder of logs and checkpoints; default work_dirs/<config name>'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed'
    )


def add_config_arguments(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """Add what names a config, or ``many``, and changes it; :func:`config_of` reads it."""
    parser.add_argument(
        'configs' if many else 'config',
        nargs='+' if many else None,
        metavar='CONFIG',
        help='config file, or one of an installed package: mmdet::FILE',
    )
    parser.add_argument(
        '--backbone',
        choices=sorted(BACKBONES),
        metavar='NAME',
        help='replace the backbone, fit what depends on it and print what was changed: '
        + ', '.join(BACKBONES),
    )
    parser.add_argument(
        '--keep-optimizer',
        action='store_true',
        help='with --backbone: keep the optimizer of the config',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change entries of the config: train_dataloader.batch_size=4; lists as key="[a,b]"',
    )


def config_of(args: argparse.Namespace, path: str | None = None) -> Config:
    """The config that :func:`add_config_arguments`' arguments describe.

    Args:
        args: With ``backbone``, ``keep_optimizer`` and ``cfg_options``.
        path: Of the config, ``args.config`` if None.

    Raises:
        FileNotFoundError: If the file or one of its bases does not exist.
        ModuleNotFoundError: If a package the config needs is not installed.
        ValueError: If the backbone of the config cannot be replaced; says why.
    """
    path = path or args.config
    if not args.backbone:
        if args.keep_optimizer:
            raise ValueError('--keep-optimizer says nothing without --backbone')
        return load_config(path, args.cfg_options)
    cfg = load_config(path)
    swapped = swap_backbone(cfg, args.backbone, args.keep_optimizer)
    print(f'{path} with {args.backbone}:', *describe_changes(cfg, swapped), sep='\n  ')
    merge_options(swapped, args.cfg_options or {})
    return swapped


def run_config_of(args: argparse.Namespace) -> Config:
    """The config of a run that :func:`add_common_arguments`' arguments describe.

    It has a launcher and a work dir, and the environment has the ``LOCAL_RANK`` that launchers of
    old versions of PyTorch give as an argument.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: Of :func:`config_of`.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = config_of(args)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return cfg


def image_size(text: str) -> tuple[int, int]:
    """``'800x1344'`` to (height, width), for ``type=`` of an argument.

    Raises:
        argparse.ArgumentTypeError: If the text says something else.
    """
    height, _, width = text.partition('x')
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f'{text!r} is not HEIGHTxWIDTH')
    return int(height), int(width)


@contextlib.contextmanager
def one_line_errors(note: str = '') -> Iterator[None]:
    """End the program with ``error: ...`` for what a caller can mend.

    Args:
        note: A last line, for what the program has done or left.
    """
    try:
        yield
    except (OSError, ModuleNotFoundError, ValueError) as error:
        raise SystemExit('\n'.join(filter(None, [f'error: {error}', note]))) from None
