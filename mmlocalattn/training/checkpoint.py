"""Finding, reading and writing checkpoints, those of MMEngine among them."""

import importlib
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from mmlocalattn.files import whole_file
from mmlocalattn.training import safe_pickle
from mmlocalattn.training.unreadable import is_torch_script, why_unreadable
from mmlocalattn.untrusted import check_archive


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
        **_by_name(classes),
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


def last_whole_checkpoint(work_dir: str, finite: bool = False) -> str | None:
    """The newest checkpoint of a run that was written to its end.

    MMEngine does not write checkpoints atomically: a run killed at the wrong moment leaves a
    truncated file, and in some cases ``last_checkpoint`` names it. A whole file is one that ends
    with its zip directory. A folder, as FSDP writes them, is whole if its files are.

    Args:
        work_dir: Folder of the run, with ``epoch_*.pth`` or ``iter_*.pth``.
        finite: Only one without NaN and infinities among its weights.

    Returns:
        Its path, or None if there is none.
    """
    folder = Path(work_dir)
    files = [*folder.glob('epoch_*.pth'), *folder.glob('iter_*.pth')]
    time = {file: file.stat().st_mtime for file in files}
    record = folder / 'last_checkpoint'
    if record.is_file():
        recorded = folder / Path(record.read_text().strip()).name
        if recorded in time:  # right even where copying the folder has changed the files' times
            time[recorded] = record.stat().st_mtime
    # Of files of one time, as those that are copied within a tick of the clock, 10 is after 9.
    newest_first = sorted(files, key=lambda f: (time[f], len(f.name), f.name), reverse=True)
    whole = (str(file) for file in newest_first if is_whole(file))
    return next((file for file in whole if not finite or not _not_finite(file)), None)


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint was written to its end."""
    files = checkpoint_files(path)
    return bool(files) and all(map(zipfile.is_zipfile, files))


def checkpoint_files(path: str | Path) -> list[Path]:
    """The file of a checkpoint; if it is a folder, that of each process of FSDP."""
    path = Path(path)
    return sorted(path.glob('rank*.pth')) if path.is_dir() else [path]


def _not_finite(path: str) -> list[str]:
    contents = (read_checkpoint(file, mmap=True) for file in checkpoint_files(path))
    return [name for content in contents for name in not_finite(content.get('state_dict', {}))]


def not_finite(weights: Mapping[str, Any]) -> list[str]:
    """The names of tensors with NaN or infinities in them."""
    return [
        name
        for name, value in weights.items()
        if isinstance(value, torch.Tensor) and not torch.isfinite(value).all()
    ]


def read_checkpoint(path: str | Path, mmap: bool = False, also: Sequence[type] = ()) -> Mapping:
    """Read a checkpoint onto the CPU; nothing in the file is executed.

    Args:
        path: Of the file.
        mmap: Read tensors when they are used, for a caller that wants few of them. Files of PyTorch
            before 1.6 are read whole.
        also: Classes of which the file may hold instances as well.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, or holds more than tensors, plain values and what
            MMEngine stores.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f'checkpoint {str(path)!r} is a folder: name a file in it')
    if not os.path.isfile(path):
        raise FileNotFoundError(f'checkpoint {str(path)!r} does not exist')
    with open(path, 'rb'):  # that it cannot be opened is not a matter of its content
        pass
    check_archive(path)
    try:
        content = _load_safely(path, mmap, also)
    except Exception as error:  # of the unpickler, the archive or what they trip over
        reason = why_unreadable(path, {**_allowed_in_checkpoints(), **_by_name(also)}, error)
        raise ValueError(f'checkpoint {str(path)!r} {reason}') from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{str(path)!r} holds no weights, neither bare nor under 'model' or 'state_dict'"
        )
    return content


def _load_safely(path: str | Path, mmap: bool, also: Sequence[type]) -> Any:
    mmap = mmap and zipfile.is_zipfile(path)
    if hasattr(torch.serialization, 'safe_globals'):
        allow_mmengine_checkpoints()
        with torch.serialization.safe_globals([*also]):
            return torch.load(path, map_location='cpu', mmap=mmap, weights_only=True)
    if is_torch_script(path):  # which torch.load would compile
        raise ValueError('a TorchScript program')
    pickle_module = safe_pickle.only({**_allowed_in_checkpoints(), **_by_name(also)})
    name = str(path)  # torch 2.1 maps no other paths
    return torch.load(name, map_location='cpu', mmap=mmap, pickle_module=pickle_module)


def _by_name(classes: Iterable[type]) -> dict[str, Any]:
    return {f'{cls.__module__}.{cls.__qualname__}': cls for cls in classes}


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
