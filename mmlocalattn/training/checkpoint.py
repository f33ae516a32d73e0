"""Finding and reading the checkpoints MMEngine writes."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)``, the default since torch 2.6, read MMEngine's files.

    Besides tensors a checkpoint holds the log history, a :class:`HistoryBuffer` of NumPy arrays
    and of its own methods. Only what that needs is allowed; a file with anything else is refused.
    """
    multiarray = np._core.multiarray
    dtypes = ('float32', 'float64', 'int32', 'int64', 'uint8', 'uint32', 'bool')
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_history_method, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            *(type(np.dtype(name)) for name in dtypes),
            multiarray._reconstruct,
            multiarray.scalar,
            # The names of the same functions in files written with NumPy 1.
            (multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),
            (multiarray.scalar, 'numpy.core.multiarray.scalar'),
        ]
    )


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


def read_seed(checkpoint: str) -> int | None:
    """The random seed of the run that wrote ``checkpoint``, or None if it is not recorded."""
    content = torch.load(checkpoint, map_location='cpu', mmap=True, weights_only=True)
    return content.get('meta', {}).get('seed')
