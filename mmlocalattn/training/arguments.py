"""The configs that the arguments of the tools describe."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, DictAction

from mmlocalattn.adapt import describe_changes, swap_backbone
from mmlocalattn.command_line import (
    add_common_arguments,
    add_config_arguments,
    image_size,
    one_line_errors,
)
from mmlocalattn.training.config import load_config

__all__ = [  # command lines of notebooks and scripts find all of them here
    'add_common_arguments',
    'add_config_arguments',
    'config_of',
    'image_size',
    'one_line_errors',
    'run_config_of',
]


def config_of(args: argparse.Namespace, path: str | None = None) -> Config:
    """The config that the arguments of :func:`add_config_arguments` describe.

    Args:
        args: With ``backbone``, ``keep_optimizer`` and ``cfg_options``.
        path: Of the config, ``args.config`` if None.

    Raises:
        FileNotFoundError: If the file or one of its bases does not exist.
        ModuleNotFoundError: If a package the config needs is not installed.
        ValueError: If the backbone of the config cannot be replaced; says why.
    """
    path = path or args.config
    options = _read_options(args.cfg_options or [])
    if not args.backbone:
        if args.keep_optimizer:
            raise ValueError('--keep-optimizer says nothing without --backbone')
        return load_config(path, options)
    cfg = load_config(path)
    swapped = swap_backbone(cfg, args.backbone, args.keep_optimizer)
    print(f'{path} with {args.backbone}:', *describe_changes(cfg, swapped), sep='\n  ')
    swapped.merge_from_dict(options)
    return swapped


def _read_options(pairs: Sequence[str]) -> dict:
    """``['a.b=[1,2]']`` to ``{'a.b': [1, 2]}``, as MMEngine's own command lines read them."""
    read = argparse.Namespace()
    DictAction([], 'options')(argparse.ArgumentParser(), read, pairs)
    return read.options


def run_config_of(args: argparse.Namespace) -> Config:
    """The config of a run that the arguments of :func:`add_common_arguments` describe.

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
