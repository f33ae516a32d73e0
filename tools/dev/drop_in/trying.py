"""Whether a stock config works with another backbone, for drop_in_report.py."""

import hashlib
import json
import re
import signal
import traceback
import warnings
from collections.abc import MutableMapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from mmlocalattn.adapt import BACKBONES, CannotAdapt, swap_backbone
from mmlocalattn.adapt.nodes import dicts
from mmlocalattn.adapt.trial import SIDES, run_model, small_model
from mmlocalattn.training import load_config

_ARCH = dict(embed_dims=(8, 16, 24, 32), depths=(1,) * 4, num_heads=(1, 2, 3, 4))
NARROW: dict[str, dict[str, Any]] = {
    'SSViT': dict(arch=dict(_ARCH, mlp_ratios=(2,) * 4)),
    'SlidePVT': dict(arch=dict(_ARCH, mlp_ratios=(2,) * 4, sr_ratios=(8, 4, 2, 1))),
    'QnAViT': dict(
        arch=dict(
            _ARCH,
            num_heads=(1, 2, 2, 4),
            mlp_ratios=(2,) * 4,
            kernel_sizes=(3,) * 4,
            window_depths=(0, 0, 1, 1),
            window_heads=(1, 2, 3, 4),
            window_sizes=(7, 7, 14, 7),
        )
    ),
    'SASAResNet': dict(
        depth=dict(embed_dims=(32, 48, 64, 96), depths=(1,) * 4, num_heads=(2,) * 4)
    ),
}
EVERYWHERE = 'ssvit_t'
IN_A_TENTH = ('qna_vit_t', 'slide_pvt_t', 'sasa_r26')
SECONDS = 300  # that one config may take


def tasks(packages: Sequence[str], texts: Sequence[str]) -> list[tuple[str, str]]:
    """(config, backbone) for all configs whose name contains any of ``texts``."""
    found = []
    for package in packages:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f'error: --packages names {package}, which is not installed')
        folder = Path(spec.origin).parent / '.mim' / 'configs'
        for file in sorted(folder.rglob('*.py')):
            name = f'{package}::{file.relative_to(folder)}'
            if '_base_' in file.parts or 'common' in file.parts:
                continue
            if not any(text in name for text in texts):
                continue
            found.append((name, EVERYWHERE))
            if hashlib.sha256(name.encode()).digest()[0] < 26:  # a tenth of 256
                found += [(name, other) for other in IN_A_TENTH if other in BACKBONES]
    return found


_seen: MutableMapping[str, tuple[str, str]] = {}
"""Outcome and detail of the models that ran, by their digest."""


def share(seen: MutableMapping[str, tuple[str, str]]) -> None:
    """Let this process know what the others have run, and not tell what it initialises."""
    global _seen
    _seen = seen
    MMLogger.get_current_instance().setLevel('ERROR')


def try_config(task: tuple[str, str]) -> dict:
    """The result for one config and backbone, in a process of its own pool.

    Returns:
        The task; ``outcome``, one of ``OUTCOMES`` of drop_in_report.py, with its reason as
        ``detail``; the type of the ``original`` backbone; and a digest of the ``model``. The last
        two may be empty.
    """
    path, name = task
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    torch.manual_seed(0)
    signal.signal(signal.SIGALRM, _time_is_up)
    signal.alarm(SECONDS)
    result = dict(config=path, backbone=name, outcome='', detail='', original='', model='')
    try:
        result['outcome'], result['detail'] = _outcome(path, name, result)
    finally:
        signal.alarm(0)
    return result


def _time_is_up(*_: object) -> None:
    raise TimeoutError(f'took more than {SECONDS} s')


def _outcome(path: str, name: str, result: dict) -> tuple[str, str]:
    try:
        cfg = load_config(path)
        if 'model' not in cfg:
            return 'refused', 'no model: a config for others to inherit from'
    except Exception as error:
        return 'broken', _last_line(error)
    result['original'] = original_backbone(cfg)
    backbone = BACKBONES[name].name
    try:
        swapped = swap_backbone(cfg, name, **NARROW[backbone])
    except CannotAdapt as error:
        return 'refused', str(error)
    except Exception as error:
        return 'failed', f'{_last_line(error)} ({_place(error)})'
    result['model'] = digest = _digest(swapped)
    if digest not in _seen:
        _seen[digest] = _run_outcome(cfg, swapped)
    return _seen[digest]


def _run_outcome(cfg: Config, swapped: Config) -> tuple[str, str]:
    try:
        run_model(swapped)
    except Exception as error:
        if reason := _breaks_anyway(cfg):
            return 'broken', reason
        return 'failed', f'{_last_line(error)} ({_place(error)})'
    return 'adapted', ''


def original_backbone(cfg: Config) -> str:
    """The type of the backbone of a config without its scope, empty if it has not just one."""
    types = {
        child['type'].rpartition('.')[2]
        for part in dicts(cfg.model)
        for key, child in part.items()
        if key == 'backbone' and isinstance(child, dict) and isinstance(child.get('type'), str)
    }
    return types.pop() if len(types) == 1 else ''


def _digest(cfg: Config) -> str:
    """Equal for configs whose models do not differ in what is run here."""
    model = small_model(cfg, SIDES[0])
    text = json.dumps([cfg.default_scope, model], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _last_line(error: Exception) -> str:
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    return re.sub(r'/[^\s\'"]*?/site-packages/', '', text)[:300]


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f'{Path(frame.filename).name}:{frame.lineno} {frame.name}'


def _breaks_anyway(cfg: Config) -> str:
    """Why the config as it is shipped does not build or run here, or nothing."""
    try:
        run_model(cfg)
    except Exception as error:
        return f'the config as shipped: {_last_line(error)} ({_place(error)})'
    return ''
