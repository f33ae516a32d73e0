"""Configs and command lines of tools/train.py and tools/test.py."""

import argparse
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import print_log

AMP_DEVICES = ('cuda', 'npu', 'mlu', 'musa')  # of MMEngine's AmpOptimWrapper
_find_config = Config._get_cfg_path


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share."""
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir', help='folder of logs and checkpoints; default work_dirs/<config name>'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change entries of the config: train_dataloader.batch_size=4; lists as key="[a,b]"',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed'
    )


def load_config(path: str, options: Mapping | None = None) -> Config:
    """Read a config whose ``_base_`` entries may also say ``mmlocalattn::<file>``.

    Args:
        path: Of the config file.
        options: Entries to change, as ``{'model.backbone.arch': 'tiny'}``.

    Raises:
        FileNotFoundError: If the file or one of its bases does not exist.
        ModuleNotFoundError: If a package the config needs is not installed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'config {path!r} does not exist')
    Config._get_cfg_path = staticmethod(_find_own_config)
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options or {})
    scope = cfg.get('default_scope', 'mmengine')
    if importlib.util.find_spec(scope) is None:
        raise ModuleNotFoundError(
            f'config {path!r} needs {scope}, which is not installed: '
            'pip install -r requirements/mminstall.txt'
        )
    return cfg


def _find_own_config(base: str, child: str) -> tuple[str, str | None]:
    """The file (and its scope) that ``base`` means in the ``_base_`` of the config ``child``."""
    if not base.startswith('mmlocalattn::'):
        return _find_config(base, child)
    package = Path(__file__).parents[1]
    installed = package / '.mim' / 'configs'
    folder = installed if installed.is_dir() else package.parent / 'configs'
    return str(folder / base.removeprefix('mmlocalattn::')), None


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
