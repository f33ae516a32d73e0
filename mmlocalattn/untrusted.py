"""Files that are small and become large, and weights that are none."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

TIMES, BYTES = 16, 1 << 26
"""What is unpacked may have so many times the bytes that are packed, and so many more.

``torch.save`` packs nothing, and trained weights become hardly smaller when something else does.
"""


def check_archive(path: str | Path) -> None:
    """Refuse a zip archive that unpacks to far more than it has.

    Raises:
        ValueError: If it does.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError):  # what reads it says what is wrong
        return
    packed = Path(path).stat().st_size
    if unpacked > TIMES * packed + BYTES:
        raise ValueError(
            f'{str(path)!r} has {packed} bytes and unpacks to {unpacked}, more than {TIMES} times '
            'as many: it is refused; save the weights anew, uncompressed'
        )


def check_weights(weights: Mapping, path: str | Path) -> None:
    """Refuse weights that are no arrays of numbers as a model has them.

    Values that are no tensors are left to the caller.

    Args:
        weights: By their names.
        path: Of the file, for errors.

    Raises:
        ValueError: If one is; names it.
    """
    for name, value in weights.items():
        if not (isinstance(name, str) and name.isprintable()):
            raise ValueError(f'{str(path)!r} has a weight called {name!r}, which is no name')
        if isinstance(value, torch.Tensor) and (kind := _kind(value)):
            raise ValueError(f'{str(path)!r}: {name} is {kind}, and a weight is plain numbers')


def _kind(tensor: torch.Tensor) -> Any:
    """What a tensor is that is no weight; empty for a weight."""
    if tensor.is_meta:
        return 'a tensor without values'
    if tensor.is_quantized or tensor.layout != torch.strided:
        return f'a tensor of {tensor.qscheme() if tensor.is_quantized else tensor.layout}'
    if tensor.is_complex():
        return f'a tensor of {tensor.dtype}'
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > TIMES * stored + BYTES:
        return f'a tensor of shape {list(tensor.shape)} of which {stored} bytes are stored'
    return ''
