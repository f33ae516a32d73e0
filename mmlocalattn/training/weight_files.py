"""The files of weights that a training starts from, before its model is built."""

from collections.abc import Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from mmlocalattn.adapt.nodes import named_dicts
from mmlocalattn.registry import WEIGHT_INITIALIZERS
from mmlocalattn.training.checkpoint import read_checkpoint
from mmlocalattn.training.processes import is_first_process
from mmlocalattn.training.unreadable import weight_names


def check_weight_files(cfg: Config) -> None:
    """Read the checkpoints that a training starts from, before its model is built.

    These are ``load_from``, and those of ``init_cfg`` and ``pretrained`` in the model. A file that
    is named by an address is downloaded, by the first process, to where MMEngine looks for it; a
    release that is named in ``init_cfg`` by the first process that comes, as the others wait.

    Raises:
        FileNotFoundError: If one does not exist; names its entry.
        ValueError: If one is no checkpoint, or has no weight with the ``prefix`` of its entry, or
            cannot be downloaded.
    """
    entries = [('load_from', 'load_from', cfg.get('load_from'), '')]
    for name, part in named_dicts(cfg.model, 'model'):
        entries += [('pretrained', f'{name}.pretrained', part.get('pretrained'), '')]
        entries += [
            (
                'init_cfg.checkpoint',
                f'{name}.init_cfg',
                init.get('checkpoint'),
                init.get('prefix') or '',
            )
            for init in pretrained_parts(part.get('init_cfg'))
        ]
        for init in _released_parts(part.get('init_cfg')):
            _fetch_released(cfg, f'{name}.init_cfg', init)
    for key, name, path, prefix in entries:
        if not is_local(path):
            if isinstance(path, str) and path and is_first_process():
                _download(cfg, name, path)
            continue
        if not Path(path).exists():
            raise FileNotFoundError(f'{key} of {cfg.filename}: {str(path)!r} does not exist')
        names = weight_names(read_checkpoint(path, mmap=True))
        if prefix and not any(name.startswith(f'{prefix.rstrip(".")}.') for name in names):
            raise ValueError(
                f'{key} of {cfg.filename}: {str(path)!r} has no weight with prefix={prefix!r}; '
                f'its names begin with {", ".join(sorted({n.partition(".")[0] for n in names}))}'
            )


def _download(cfg: Config, name: str, address: str) -> None:
    """Get the weights of an address, which PyTorch keeps."""
    try:
        CheckpointLoader.load_checkpoint(address, map_location='cpu')
    except (OSError, KeyError, RuntimeError, HTTPException) as error:
        reason = ' '.join(str(getattr(error, 'reason', error)).split())
        raise ValueError(
            f'{name} of {cfg.filename}: {address} cannot be loaded ({reason}). With --cfg-options '
            f'{name}=None it starts from random weights; a file that you downloaded elsewhere is '
            f'found in {torch.hub.get_dir()}/checkpoints'
        ) from error


def _fetch_released(cfg: Config, name: str, init: Mapping) -> None:
    """Get and convert the release that an ``init_cfg`` names."""
    try:
        WEIGHT_INITIALIZERS.build(dict(init)).load()
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f'{name} of {cfg.filename}: {error}. With --cfg-options {name}=None it starts from '
            'random weights'
        ) from error


def _released_parts(init_cfg: Any) -> Iterable[Mapping]:
    return [part for part in _parts(init_cfg) if part.get('type') == 'mmlocalattn.Released']


def pretrained_parts(init_cfg: Any) -> Iterable[Mapping]:
    """What of an ``init_cfg``, a dict or a list of them, loads a checkpoint."""
    return [part for part in _parts(init_cfg) if part.get('type') == 'Pretrained']


def _parts(init_cfg: Any) -> list[Mapping]:
    entries = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return [part for part in entries if isinstance(part, Mapping)]


def is_local(path: Any) -> bool:
    """Whether this names a file on this machine, and not an address or a name of a zoo."""
    return isinstance(path, (str, Path)) and bool(str(path)) and '://' not in str(path)
