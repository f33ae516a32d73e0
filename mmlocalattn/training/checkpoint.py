"""Finding, reading and writing checkpoints, those of MMEngine among them."""

import importlib
import os
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from mmlocalattn.files import whole_file
from mmlocalattn.training import safe_pickle


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)``, the default since torch 2.6, read MMEngine's files.

    Besides tensors a checkpoint holds the log history, a :class:`HistoryBuffer` of NumPy arrays
    and of its own methods. Only what that needs is allowed; a file with anything else is refused.
    Before torch 2.4 there is nothing to allow, and MMEngine reads whatever a file holds.
    """
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals(
            [(value, name) for name, value in _allowed_in_checkpoints().items()]
        )


def _allowed_in_checkpoints() -> dict[str, Any]:
    """What MMEngine's checkpoints hold besides tensors, by the names in the files."""
    old = np.lib.NumpyVersion(np.__version__) < '2.0.0'
    # Has no public name. Files have that of the NumPy that wrote them.
    multiarray = importlib.import_module(
        'numpy.core.multiarray' if old else 'numpy._core.multiarray'
    )
    dtypes = ('float32', 'float64', 'int32', 'int64', 'uint8', 'uint32', 'bool')
    classes = [HistoryBuffer, np.ndarray, np.dtype, *(type(np.dtype(name)) for name in dtypes)]
    return {
        'builtins.getattr': _history_method,
        **{f'{cls.__module__}.{cls.__qualname__}': cls for cls in classes},
        **{
            f'numpy.{core}.multiarray.{name}': getattr(multiarray, name)
            for core in ('core', '_core')
            for name in ('_reconstruct', 'scalar')
        },
    }


def _history_method(owner: type, name: str) -> Callable:
    """The ``getattr`` that checkpoints may call: for the methods of :class:`HistoryBuffer` only."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise UnpicklingError(f'checkpoint asks for {owner}.{name}, which is not allowed')
    return getattr(owner, name)


def last_whole_checkpoint(work_dir: str) -> str | None:
    """The newest checkpoint of a run that was written to its end.

    MMEngine does not write checkpoints atomically: a run killed at the wrong moment leaves a
    truncated file, and in some cases ``last_checkpoint`` names it. A whole file is one that ends
    with its zip directory.

    Args:
        work_dir: Folder of the run, with ``epoch_*.pth`` or ``iter_*.pth``.

    Returns:
        The file's path, or None if there is none.
    """
    folder = Path(work_dir)
    files = [*folder.glob('epoch_*.pth'), *folder.glob('iter_*.pth')]
    time = {file: file.stat().st_mtime for file in files}
    record = folder / 'last_checkpoint'
    if record.is_file():
        recorded = folder / Path(record.read_text().strip()).name
        if recorded in time:  # right even where copying the folder has changed the files' times
            time[recorded] = record.stat().st_mtime
    newest_first = sorted(files, key=lambda file: time[file], reverse=True)
    return next((str(file) for file in newest_first if zipfile.is_zipfile(file)), None)


def read_checkpoint(path: str | Path, mmap: bool = False, also: Sequence[type] = ()) -> Mapping:
    """Read a checkpoint onto the CPU; nothing in the file is executed.

    Args:
        path: Of the file.
        mmap: Read tensors when they are used, for a caller that wants few of them.
        also: Classes of which the file may hold instances as well.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, or holds more than tensors, plain values and what
            MMEngine stores.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'checkpoint {str(path)!r} does not exist')
    try:
        content = _load_safely(path, mmap, also)
    except OSError:
        raise
    except Exception as error:  # of the unpickler, the archive or what they trip over
        raise ValueError(
            f'{str(path)!r} is not a checkpoint that loads with weights_only=True: {_reason(error)}'
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{str(path)!r} holds no weights, neither bare nor under 'model' or 'state_dict'"
        )
    return content


def _load_safely(path: str | Path, mmap: bool, also: Sequence[type]) -> Any:
    if hasattr(torch.serialization, 'safe_globals'):
        allow_mmengine_checkpoints()
        with torch.serialization.safe_globals([*also]):
            return torch.load(path, map_location='cpu', mmap=mmap, weights_only=True)
    allowed = {f'{cls.__module__}.{cls.__qualname__}': cls for cls in also}
    pickle_module = safe_pickle.only({**_allowed_in_checkpoints(), **allowed})
    return torch.load(path, map_location='cpu', mmap=mmap, pickle_module=pickle_module)


def load_weights(
    module: nn.Module, path: str | Path, prefix: str = '', optional: Sequence[str] = ()
) -> Mapping:
    """Load all weights of a module from a checkpoint, and leave none of the checkpoint's over.

    Args:
        module: Gets the weights. If this raises, it may have got some of them.
        path: Of a checkpoint of MMEngine, or of bare weights.
        prefix: Of the module's names in the file, as ``'backbone.'``; others are left alone.
        optional: Beginnings of names, without the prefix, that may be missing or left over.

    Returns:
        What the file holds, ``meta`` for example.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, or one of another model: counts what is missing, left
            over or of another shape, and names the first.
    """
    content = read_checkpoint(path)
    for part in reversed(prefix.split('.')[:-1]):  # so that names are those of the file
        module = nn.ModuleDict({part: module})
    optional = tuple(prefix + name for name in optional)
    try:
        missing, unexpected = module.load_state_dict(content.get('state_dict', content), False)
        problems = {
            # Buffers of batch norms that old versions of PyTorch did not have.
            'missing': [name for name in missing if not name.endswith('.num_batches_tracked')],
            'unexpected': [name for name in unexpected if name.startswith(prefix)],
        }
        problems = {
            kind: sorted(name for name in names if not name.startswith(optional))
            for kind, names in problems.items()
        }
    except RuntimeError as error:  # has a line for each weight of another shape
        problems = {'of another shape': [_shapes(line) for line in str(error).splitlines()[1:]]}
    shown = [f'{len(names)} {kind}, {_first(names)}' for kind, names in problems.items() if names]
    if shown:
        raise ValueError(
            f'checkpoint {str(path)!r} is not of this config: {"; ".join(shown)} '
            '(tools/convert_checkpoint.py converts released ones)'
        )
    return content


def save_checkpoint(checkpoint: Mapping, path: Path) -> None:
    """Write a checkpoint whole or not at all."""
    # Given a path, torch would write the temporary name into every record.
    with whole_file(path) as partial, partial.open('wb') as file:
        torch.save(checkpoint, file)


def read_seed(checkpoint: str) -> int | None:
    """The random seed of the run that wrote ``checkpoint``, or None if it is not recorded.

    Raises:
        FileNotFoundError, ValueError: Of :func:`read_checkpoint`.
    """
    return read_checkpoint(checkpoint, mmap=True).get('meta', {}).get('seed')


def _reason(error: Exception) -> str:
    """What went wrong, in one line and without PyTorch's advice to execute the file."""
    inner = error.__context__ or error  # that of the unpickler, which PyTorch puts into an essay
    text = str(inner).strip().partition('\n')[0].partition('. Please use')[0]
    return f'{type(inner).__name__} {text}'.strip()


def _shapes(line: str) -> str:
    """PyTorch's line about a weight of another shape, shorter."""
    size = r'torch\.Size\((.*?)\)'
    match = re.search(rf'size mismatch for (\S+): .*?{size} from checkpoint, .*?{size}', line)
    return f'{match[1]} {match[2]} instead of {match[3]}' if match else line.strip()


def _first(names: Sequence[str]) -> str:
    return 'that is ' + names[0] if len(names) == 1 else 'the first ' + ', '.join(names[:3])
