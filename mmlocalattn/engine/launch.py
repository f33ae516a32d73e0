"""Configs and command lines of tools/train.py and tools/test.py."""

import argparse
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.device import get_device
from mmengine.logging import print_log

from mmlocalattn.adapt import BACKBONES, describe_changes, swap_backbone

AMP_DEVICES = ('cuda', 'npu', 'mlu', 'musa')  # of MMEngine's AmpOptimWrapper
_find_config = Config._get_cfg_path


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share."""
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
    swapped.merge_from_dict(args.cfg_options or {})
    return swapped


def load_config(path: str, options: Mapping | None = None) -> Config:
    """Read a config whose ``_base_`` entries may also say ``mmlocalattn::<file>``.

    Args:
        path: Of the config file, or ``<package>::<file>`` for one that a package brings. (MMEngine
            alone finds no ``mmseg::<file>`` of onedl's distribution.)
        options: Entries to change, as ``{'model.backbone.arch': 'tiny'}``.

    Raises:
        FileNotFoundError: If the file or one of its bases does not exist.
        ModuleNotFoundError: If a package the config needs is not installed.
    """
    Config._get_cfg_path = staticmethod(_find_own_config)
    MODULE2PACKAGE['mmseg'] = 'mmseg'  # the distribution has another name in each stack
    try:
        file = _find_own_config(path, '')[0] if '::' in path else path
        if not Path(file).is_file():
            raise FileNotFoundError(file)
    except (FileNotFoundError, ValueError) as error:  # MMEngine's for a file that no package has
        raise FileNotFoundError(f'config {path!r} does not exist') from error
    cfg = Config.fromfile(file)
    cfg.merge_from_dict(options or {})
    scope = cfg.get('default_scope', 'mmengine')
    if importlib.util.find_spec(scope) is None:
        raise ModuleNotFoundError(
            f'config {path!r} needs {scope}, which is not installed: '
            'pip install -r requirements/mminstall.txt'
        )
    return cfg


def _find_own_config(base: str, child: str) -> tuple[str, str | None]:
    """The file (and its scope) that ``base`` means in the ``_base_`` of the config ``child``.

    A file that an installed package brings is looked up by its name. MMEngine's own way reads all
    metafiles of the package each time, does not find names with a ``+`` or a second dot, and needs
    to know the package's distribution.
    """
    package, separator, name = base.partition('::')
    if package == 'mmlocalattn':
        root = Path(__file__).parents[1]
        installed = root / '.mim' / 'configs'
        return str((installed if installed.is_dir() else root.parent / 'configs') / name), None
    if separator and (spec := importlib.util.find_spec(package)) and spec.origin:
        file = Path(spec.origin).parent / '.mim' / 'configs' / name
        if file.is_file():
            return str(file), package
    return _find_config(base, child)


def adapt_to_device(cfg: Config) -> None:
    """Let a config written for GPUs run where there is none, and say so.

    MMEngine's AMP needs an accelerator, SyncBN needs a GPU, and MMEngine's launcher assumes CUDA.
    Without one, training is in float32 with BN, and processes talk through gloo. (With one GPU,
    MMEngine itself replaces SyncBN.)

    Args:
        cfg: Changed in place.
    """
    if get_device() in AMP_DEVICES:
        return
    wrapper = cfg.get('optim_wrapper')
    if wrapper is not None and wrapper.get('type', '').endswith('AmpOptimWrapper'):
        wrapper.type = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
        print_log('No GPU found: training in float32 instead of mixed precision.', logger=None)
    _replace_type(cfg.model, 'SyncBN', 'BN')
    if cfg.get('launcher', 'none') == 'pytorch':
        torch.distributed.init_process_group('gloo')
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )


def _replace_type(node: object, old: str, new: str) -> None:
    """Replace ``type=old`` by ``type=new`` in nested dicts and lists."""
    if isinstance(node, dict):
        if node.get('type') == old:
            node['type'] = new
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            _replace_type(child, old, new)
