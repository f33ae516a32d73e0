"""Parameter trees of Flax, read without JAX, Flax or msgpack.

Flax writes a tree of dicts as msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md);
``flax/serialization.py`` says how arrays are put in it.
"""

import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

WRAPPERS = ('params', 'optimizer', 'target')
"""What training states put around parameters: TrainState has ``params``, the states of older
versions ``optimizer`` and in it ``target``."""

# First byte: how the value, or the length before it, is packed.
_NUMBERS = {
    **dict(zip(range(0xCA, 0xCC), ('>f', '>d'))),
    **dict(zip(range(0xCC, 0xD4), ('>B', '>H', '>I', '>Q', '>b', '>h', '>i', '>q'))),
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_LENGTHS = {
    **{0xC4 + size: ('bin', code) for size, code in enumerate(('>B', '>H', '>I'))},
    **{0xC7 + size: ('ext', code) for size, code in enumerate(('>B', '>H', '>I'))},
    **{0xD9 + size: ('str', code) for size, code in enumerate(('>B', '>H', '>I'))},
    **{0xDC + size: ('array', code) for size, code in enumerate(('>H', '>I'))},
    **{0xDE + size: ('map', code) for size, code in enumerate(('>H', '>I'))},
}
_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # codes of Flax's own types


def parameters(tree: Any) -> dict[str, Tensor]:
    """The parameters of a training state, or of a bare tree, by their path.

    Args:
        tree: Dicts in dicts, with tensors as leaves.

    Returns:
        Tensors by names such as ``'StemBlock_0/conv_1x1/kernel'``.

    Raises:
        ValueError: If there are no parameters, or something else than tensors among them.
    """
    if not isinstance(tree, Mapping) or not tree:
        raise ValueError(f'holds no weights, got {tree!r:.80}')
    while key := next((key for key in WRAPPERS if isinstance(tree.get(key), Mapping)), None):
        tree = tree[key]
    flat = _flatten(tree)
    others = [name for name, leaf in flat.items() if not isinstance(leaf, Tensor)]
    if others:
        raise ValueError(f'holds values that are not arrays among its weights: {", ".join(others)}')
    return flat


def unflatten(arrays: Mapping[str, Tensor]) -> dict:
    """The tree whose paths, joined by ``/``, are the names of ``arrays``."""
    tree: dict = {}
    for name, array in arrays.items():
        *parents, leaf = name.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree


def read_msgpack(data: bytes) -> Any:
    """Decode what ``flax.serialization.msgpack_serialize`` wrote.

    Returns:
        Dicts, lists and plain values, with arrays as tensors.

    Raises:
        ValueError: If ``data`` is not such a file.
    """
    reader = _Reader(data)
    try:
        tree = reader.value()
    except (
        struct.error,
        ArithmeticError,
        LookupError,
        RuntimeError,
        TypeError,
        UnicodeDecodeError,
    ) as error:
        raise ValueError(f'not a msgpack file of Flax: {error!r}') from error
    if reader.position != len(data):
        raise ValueError(f'not a msgpack file of Flax: ends at {reader.position} of {len(data)}')
    return tree


class _Reader:
    """Decodes one msgpack value after the other.

    Args:
        data: To decode.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = memoryview(data)
        self.position = 0

    def value(self) -> Any:
        (first,) = self.take(1)
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 0x100
        if first < 0xC0:  # short containers and strings have their length in the first byte
            if first < 0xA0:
                return self.container('map' if first < 0x90 else 'array', first & 0x0F)
            return self.container('str', first & 0x1F)
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            return self.number(_NUMBERS[first])
        if 0xD4 <= first <= 0xD8:
            return self.container('ext', 1 << (first - 0xD4))
        kind, code = _LENGTHS[first]
        return self.container(kind, self.number(code))

    def container(self, kind: str, length: int) -> Any:
        if kind == 'map':
            return _join_chunks({self.value(): self.value() for _ in range(length)})
        if kind == 'array':
            return [self.value() for _ in range(length)]
        if kind == 'ext':
            code = self.number('>b')
            return _extension(code, self.take(length))
        content = self.take(length)
        return str(content, 'utf-8') if kind == 'str' else bytes(content)

    def number(self, code: str) -> Any:
        (number,) = struct.unpack(code, self.take(struct.calcsize(code)))
        return number

    def take(self, length: int) -> memoryview:
        content = self.data[self.position : self.position + length]
        if len(content) < length:
            raise ValueError(f'not a msgpack file of Flax: {len(self.data)} bytes are too few')
        self.position += length
        return content


def _extension(code: int, content: memoryview) -> Any:
    if code not in (_NDARRAY, _COMPLEX, _SCALAR):
        raise ValueError(f'not a msgpack file of Flax: it has no extension type {code}')
    fields = _Reader(content).value()
    if code == _COMPLEX:
        return complex(*fields)
    shape, name, values = fields
    if not isinstance(values, bytes):
        raise TypeError(f'not the bytes of an array: {values!r:.80}')
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f'there is no torch dtype for an array of {name}')
    tensor = torch.frombuffer(bytearray(values), dtype=dtype) if values else torch.empty(0)
    tensor = tensor.to(dtype).reshape(shape)
    return tensor if code == _NDARRAY else tensor.item()


def _join_chunks(node: dict) -> Any:
    """An array that Flax cut into chunks because it has a gigabyte or more; other dicts stay."""
    if '__msgpack_chunked_array__' not in node:
        return node
    shape, chunks = (
        [node[key][str(index)] for index in range(len(node[key]))] for key in ('shape', 'chunks')
    )
    return torch.cat(chunks).reshape(shape)


def _flatten(tree: Mapping, prefix: str = '') -> dict[str, Any]:
    flat = {}
    for key, child in tree.items():
        if isinstance(child, Mapping):
            flat.update(_flatten(child, f'{prefix}{key}/'))
        else:
            flat[f'{prefix}{key}'] = child
    return flat
