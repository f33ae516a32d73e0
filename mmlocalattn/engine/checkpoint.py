"""Finding and reading the checkpoints MMEngine writes."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)``, the default since torch 2.6, read MMEngine's checkpoints.

    Besides tensors they hold the log history, a :class:`HistoryBuffer` of NumPy arrays. Only the classes needed for
    that are allowed; a file with anything else in it is still refused.
    """
    reconstruct = np._core.multiarray._reconstruct
    scalar = np._core.multiarray.scalar
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            np.ndarray,
            np.dtype,
            *(
                type(np.dtype(name))
                for name in ('float32', 'float64', 'int32', 'int64', 'uint8', 'uint32', 'bool')
            ),
            # NumPy 1 wrote the same functions under another module name.
            *(
                (func, f'numpy.{core}.multiarray.{name}')
                for core in ('core', '_core')
                for func, name in ((reconstruct, '_reconstruct'), (scalar, 'scalar'))
            ),
        ]
    )


def last_whole_checkpoint(work_dir: str) -> str | None:
    """The newest checkpoint of a run that was written to its end.

    MMEngine does not write checkpoints atomically: a run killed at the wrong moment leaves a truncated file, and in
    some cases ``last_checkpoint`` names it. A whole file is one that ends with its zip directory.

    Args:
        work_dir: Folder of the run, with ``epoch_*.pth`` or ``iter_*.pth``.

    Returns:
        The file's path, or None if there is none.
    """
    folder = Path(work_dir)
    age = {
        path: path.stat().st_mtime
        for pattern in ('epoch_*.pth', 'iter_*.pth')
        for path in folder.glob(pattern)
    }
    record = folder / 'last_checkpoint'
    if record.is_file():
        recorded = folder / Path(record.read_text().strip()).name
        if (
            recorded in age
        ):  # the order of the records holds even where a copy has changed the files' times
            age[recorded] = record.stat().st_mtime
    whole = (
        path
        for path in sorted(age, key=lambda path: age[path], reverse=True)
        if zipfile.is_zipfile(path)
    )
    return next(map(str, whole), None)


def read_seed(checkpoint: str) -> int | None:
    """The random seed of the run that wrote ``checkpoint``, or None if it is not recorded."""
    content = torch.load(checkpoint, map_location='cpu', mmap=True, weights_only=True)
    return content.get('meta', {}).get('seed')
