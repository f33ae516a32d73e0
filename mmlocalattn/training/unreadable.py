"""What a file is that is no checkpoint, or one that is refused, and what its owner can do."""

import os
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mmlocalattn.converters.marks import families_of
from mmlocalattn.training import safe_pickle

CONVERT = 'tools/convert_checkpoint.py'
CUT_OFF = 'was not written, copied or downloaded to its end'
CONTAINERS = ('state_dict', 'model', 'model_state_dict', 'state_dict_ema', 'model_ema', 'params')
"""Keys under which training scripts keep the weights, MMEngine's first."""

_LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # the magic number of torch.save, pickled


def is_torch_script(path: str | Path) -> bool:
    """Whether a file is a TorchScript program."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any('/code/' in name for name in archive.namelist())


def why_unreadable(path: str | Path, allowed: Mapping[str, Any], error: Exception) -> str:
    """Why PyTorch does not read a checkpoint, in words that follow the name of the file.

    Args:
        path: Of a file that exists.
        allowed: What a checkpoint may hold besides tensors, by dotted names.
        error: What PyTorch says.
    """
    with open(path, 'rb') as file:
        head = file.read(64)
    if not head:
        return 'is empty'
    if head.startswith(b'version https://git-lfs'):
        return 'is a pointer of Git LFS and not the file itself: run `git lfs pull`'
    if head.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        return 'is a web page and no checkpoint: download the file itself'
    if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < os.path.getsize(path):
        return 'is a safetensors file: torch.save what safetensors.torch.load_file reads from it'
    if head.startswith(b'PK') and not zipfile.is_zipfile(path):
        return CUT_OFF
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith('.npy') for name in names):
            return f'is an archive of NumPy: `{CONVERT} qna_vit` reads those of QnA'
        if is_torch_script(path):
            return 'is a TorchScript program and no checkpoint'
        if not any(name.endswith('/data.pkl') for name in names):
            return 'is a zip archive and no checkpoint'
    elif not head.startswith(_LEGACY):
        return 'is no checkpoint: torch.save has not written it'
    return _of_pickle(path, allowed, error)


def _of_pickle(path: str | Path, allowed: Mapping[str, Any], error: Exception) -> str:
    try:
        content, asked_for = safe_pickle.outline(path)
    except Exception:  # whatever a broken pickle trips over
        return CUT_OFF
    known = safe_pickle.known_names(allowed)
    foreign = [name for name in asked_for if name not in known]
    if foreign:
        return f'holds {_some(foreign)} beside its weights, of which nothing is loaded or run: ' + (
            _which_converter(path, content, foreign) or _SAVE_WEIGHTS_ALONE
        )
    reason = first_line(error)
    return CUT_OFF if 'EOF' in reason else f'cannot be read: {reason}'


_SAVE_WEIGHTS_ALONE = (
    "write a file of weights alone where it was made, torch.save({'state_dict': "
    'model.state_dict()}, FILE)'
)


def _which_converter(path: str | Path, content: Any, foreign: Collection[str]) -> str | None:
    families = families_of(weight_names(content))
    if families and set(foreign) <= {'argparse.Namespace'}:
        return use_converter(path, families)
    return None


def use_converter(path: str | Path, families: Collection[str]) -> str:
    """Which command reads a checkpoint of one of these releases."""
    return f'`{CONVERT} {" or ".join(families)} {path} NEW.pth` converts this release'


def weight_names(content: Any) -> list[str]:
    """The names of the weights in the content of a checkpoint, wherever they are kept."""
    if not isinstance(content, Mapping):
        return []
    inner = (content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping))
    return [str(name) for name in next(inner, content)]


def first_line(error: Exception) -> str:
    """What went wrong, in one line and without PyTorch's advice to execute the file."""
    inner = error.__context__ or error  # that of the unpickler, which PyTorch puts into an essay
    text = str(inner).strip().partition('\n')[0].partition('. ')[0]
    return f'{type(inner).__name__} {text}'.strip()


def _some(names: list[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more kinds' if len(names) > 3 else '')
