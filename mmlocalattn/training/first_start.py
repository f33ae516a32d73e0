"""The operators of a model against their references, when it first starts on a GPU."""

import hashlib
import importlib.util
import json
import os
import sys
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import nn

from mmlocalattn import ops
from mmlocalattn.check import check_operators, device_name
from mmlocalattn.files import write_json
from mmlocalattn.ops._implementation import VARIABLE, chosen

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""In which models are trained."""


def check_first_start(model: nn.Module, device: torch.device | None = None) -> None:
    """Compare the operators of a model with their references, unless that was done before here.

    What was right is written to the user's cache folder, for each device, torch, build of the
    kernels and implementation.

    Args:
        model: Any model; without operators of ours nothing happens.
        device: That of the run: the GPU in use if None, and nothing happens if there is none.

    Raises:
        SystemExit: If an operator is wrong, in one line.
    """
    if device is None:
        if not torch.cuda.is_available():
            return
        device = torch.device('cuda', torch.cuda.current_device())
    record = cache_folder() / f'right_operators_{_setting_hash(device)}.json'
    known = json.loads(record.read_text()) if record.is_file() else []
    new = [name for name in operators_of(model) if name not in known]
    if not new:
        return
    print_log(f'First start on {device_name(device)}: checking {", ".join(new)}.', logger='current')
    wrong = [finding for finding in check_operators(device, new, DTYPES) if not finding.is_right]
    if wrong:
        raise SystemExit(
            f'error: {wrong[0].describe()} on {device_name(device)}. {VARIABLE}=reference runs '
            f'it in PyTorch, slowly; please report it with the output of '
            '`python -m mmlocalattn.check` and `python -m mmlocalattn.collect_env`.'
        )
    _remember(record, sorted({*known, *new}))


def operators_of(model: nn.Module) -> list[str]:
    """The operators that the layers of a model call, those of a user's subclasses too."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    modules = {sys.modules.get(cls.__module__) for cls in classes}
    names = (
        name
        for name in ops.OPS
        for module in modules
        if getattr(module, name, None) is getattr(ops, name)
    )
    return list(dict.fromkeys(names))


def cache_folder() -> Path:
    """That of this package, of this user."""
    root = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(root, 'mmlocalattn')


def _setting_hash(device: torch.device) -> str:
    """Of all that an operator's result depends on."""
    spec = importlib.util.find_spec('mmlocalattn._ext')
    kernels = Path(spec.origin).read_bytes() if spec and spec.origin else b''
    setting = f'{device_name(device)} {torch.__version__} {chosen(device.type)} '
    return hashlib.sha256(setting.encode() + kernels).hexdigest()[:16]


def _remember(record: Path, names: list[str]) -> None:
    if int(os.environ.get('LOCAL_RANK', 0)):
        return  # another process writes
    try:
        write_json(record, names)
    except OSError as error:
        print_log(f'{record} cannot be written ({error}): the next start checks again.', 'current')
