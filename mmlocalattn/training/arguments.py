"""The configs that the arguments of the tools describe."""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, DictAction

from mmlocalattn.adapt import BACKBONES, describe_changes, fit_to_data, swap_backbone
from mmlocalattn.adapt.data import task_of
from mmlocalattn.adapt.sizes import fit_sizes
from mmlocalattn.adapt.user_class import import_class
from mmlocalattn.command_line import (
    add_common_arguments,
    add_config_arguments,
    add_data_arguments,
    image_size,
    one_line_errors,
)
from mmlocalattn.data.folders import FolderData, NotRecognised, read_folder
from mmlocalattn.training.config import check_scope, complete_config, read_config
from mmlocalattn.training.processes import is_first_process

__all__ = [  # command lines of notebooks and scripts find all of them here
    'add_common_arguments',
    'add_config_arguments',
    'add_data_arguments',
    'config_of',
    'data_of',
    'image_size',
    'one_line_errors',
    'options_of',
    'run_config_of',
]


def config_of(args: argparse.Namespace, path: str | None = None) -> Config:
    """The config that the arguments of :func:`add_config_arguments` describe.

    Args:
        args: With ``backbone``, ``keep_optimizer`` and ``cfg_options``, and perhaps ``data``,
            ``val_fraction`` and ``skip_bad``.
        path: Of the config, ``args.config`` if None.

    Raises:
        FileNotFoundError: If the file or one of its bases does not exist.
        ModuleNotFoundError: If a package the config needs is not installed.
        ValueError: If the backbone of the config cannot be replaced, or it cannot learn the data;
            says why.
    """
    path = path or args.config
    cfg = changed = read_config(path)
    if args.backbone:
        check_scope(cfg)
        own = args.backbone not in BACKBONES
        backbone = dict(type=import_class(args.backbone)) if own else args.backbone
        changed = swap_backbone(cfg, backbone, args.keep_optimizer)
    elif args.keep_optimizer:
        raise ValueError('--keep-optimizer says nothing without --backbone')
    if getattr(args, 'data', None):
        changed = fit_to_folder(changed, data_of(args, changed))
    if changed is not cfg:
        names = ' and '.join(filter(None, [args.backbone, getattr(args, 'data', None)]))
        print(f'{path} with {names}:', *describe_changes(cfg, changed), sep='\n  ')
    complete_config(changed, options_of(args))
    return changed


def data_of(args: argparse.Namespace, cfg: Config) -> FolderData:
    """The data set in the folder of ``--data``; what had to be converted is in the work dir.

    A folder that holds more than one thing is read for the task of the config. One that holds
    nothing for it is read too, so that what it holds can be told.

    Args:
        args: Of :func:`add_data_arguments`.
        cfg: That is to learn it.

    Raises:
        FileNotFoundError, ValueError: Of :func:`~mmlocalattn.data.folders.read_folder`.
    """
    out = os.path.join(getattr(args, 'work_dir', None) or default_work_dir(args), 'data')
    while not is_first_process() and not os.path.exists(out):  # the first process writes
        time.sleep(0.5)
    try:
        return read_folder(args.data, out, args.val_fraction, args.skip_bad, task_of(cfg))
    except NotRecognised:
        return read_folder(args.data, out, args.val_fraction, args.skip_bad)


def fit_to_folder(cfg: Config, data: FolderData) -> Config:
    """A config for other data, and images of a size for them; says what the data are."""
    print(*data.report, sep='\n')
    fitted = fit_to_data(cfg, data)
    fit_sizes(fitted, data)
    return fitted


def options_of(args: argparse.Namespace) -> dict:
    """The entries of the config that ``--cfg-options`` changes."""
    return _read_options(args.cfg_options or [])


def default_work_dir(args: argparse.Namespace) -> str:
    """The folder of a run that is not told another one."""
    return f'work_dirs/{Path(args.config).stem}'


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
    cfg.work_dir = str(args.work_dir or cfg.get('work_dir') or default_work_dir(args))
    return cfg
