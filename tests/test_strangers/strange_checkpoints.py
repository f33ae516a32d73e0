"""Checkpoints as somebody might send them who means no good, or does not know better."""

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable

import numpy as np
import torch

WEIGHTS = {'backbone.w': torch.ones(4, 4), 'backbone.b': torch.zeros(4)}
STATE = dict(meta=dict(seed=0, epoch=1, iter=3), message_hub={}, state_dict=WEIGHTS)
BOMB = 1 << 28  # bytes that a bomb unpacks to


class Touch:
    """Pickles as a command that leaves a file."""

    def __reduce__(self) -> tuple:
        return os.system, ('touch executed',)


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def saved(content: object, **options: object) -> bytes:
    """What ``torch.save`` makes of it."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def cut(content: bytes, share: float = 0.5) -> bytes:
    return content[: int(len(content) * share)]


def bomb(member: str) -> bytes:
    """A checkpoint, compressed, of which one member unpacks to gigabytes of zeros."""
    out, method = io.BytesIO(), zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(io.BytesIO(saved(STATE))) as old, zipfile.ZipFile(out, 'w', method) as new:
        for info in old.infolist():
            is_it = info.filename.endswith(member)
            new.writestr(info.filename, bytes(BOMB) if is_it else old.read(info))
    return out.getvalue()


def nested(depth: int) -> list:
    node: list = []
    for _ in range(depth):
        node = [node]
    return node


def laughs(levels: int) -> list:
    """A list of few objects that is 10 ** levels long when it is printed."""
    node: list = ['ha']
    for _ in range(levels):
        node = [node] * 10
    return node


def cyclic() -> dict:
    node: dict = dict(STATE)
    node['self'] = node['state_dict'] = node
    return node


def msgpack_array(length: int) -> bytes:
    return b'\xdd' + struct.pack('>I', length)


def flax_array(shape: tuple, dtype: bytes, values: bytes) -> bytes:
    """An array as Flax writes it, in a tree with one name."""
    sides = bytes([0x90 + len(shape)]) + b''.join(b'\xcf' + struct.pack('>Q', s) for s in shape)
    fields = b'\x93' + sides + bytes([0xA0 + len(dtype)]) + dtype
    fields += b'\xc6' + struct.pack('>I', len(values)) + values
    return b'\x81\xa1w' + b'\xc9' + struct.pack('>I', len(fields)) + b'\x01' + fields


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def npz_header(shape: str) -> bytes:
    """An archive of an array that says to be of another shape than it is."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + '\n'
    content = b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header.encode() + bytes(16)
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('w.npy', content)
    return file.getvalue()


class Program(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def torch_script() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(Program()), file)
    return file.getvalue()


def many_members() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('archive/data.pkl', pickle.dumps({}))
        for index in range(20000):
            archive.writestr(f'archive/data/{index}', b'')
    return file.getvalue()


def path_tricks() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(STATE))) as old, zipfile.ZipFile(out, 'w') as new:
        for info in old.infolist():
            new.writestr('../../' + info.filename, old.read(info))
        new.writestr('/etc/passwd', b'x')
    return out.getvalue()


def weights(name: str, value: torch.Tensor) -> bytes:
    return saved(dict(STATE, state_dict={name: value}))


CODE = dict(STATE, run=Touch())
FILES: dict[str, Callable[[], bytes]] = {
    'empty': lambda: b'',
    'text': lambda: b'hello\n' * 99,
    'zeros': lambda: bytes(4096),
    'cut in half': lambda: cut(saved(STATE)),
    'cut in its directory': lambda: saved(STATE)[:-10],
    'cut legacy': lambda: cut(saved(STATE, _use_new_zipfile_serialization=False), 0.9),
    'runs a command': lambda: saved(CODE),
    'runs a command, legacy': lambda: saved(CODE, _use_new_zipfile_serialization=False),
    'runs a command, bare pickle': lambda: pickle.dumps(CODE),
    'calls eval': lambda: saved(dict(STATE, run=Call(eval, "open('executed', 'w')"))),
    'imports a module': lambda: saved(dict(STATE, run=Call(__import__, 'antigravity'))),
    'asks for much memory': lambda: saved(dict(STATE, run=Call(bytearray, 1 << 40))),
    'bomb in its pickle': lambda: bomb('data.pkl'),
    'bomb in a tensor': lambda: bomb('data/0'),
    'many members': many_members,
    'members outside': path_tricks,
    'a program': torch_script,
    'nested deeply': lambda: saved(dict(STATE, deep=nested(150))),
    'a list': lambda: saved([1, 2]),
    'cyclic': lambda: saved(cyclic()),
    'laughs': lambda: saved(dict(meta=laughs(9), state_dict=laughs(9))),
    'weights are a list': lambda: saved(dict(STATE, state_dict=[torch.ones(2)])),
    'weights are numbers': lambda: saved(dict(STATE, state_dict={'backbone.w': 3})),
    'names are numbers': lambda: saved(dict(STATE, state_dict={1: torch.ones(2)})),
    'names are paths': lambda: weights('../../../etc/passwd', torch.ones(2)),
    'names move the cursor': lambda: weights('/a\n\x1b[2Jb', torch.ones(2)),
    'integers': lambda: weights('backbone.w', torch.ones(2, dtype=torch.int8)),
    'complex': lambda: weights('backbone.w', torch.ones(2, dtype=torch.complex64)),
    'sparse': lambda: weights('backbone.w', torch.eye(3).to_sparse()),
    'on meta': lambda: weights('backbone.w', torch.ones(2, device='meta')),
    'one number for terabytes': lambda: weights(
        'backbone.w', torch.ones(1).expand(1 << 20, 1 << 20)
    ),
    'other shapes': lambda: saved(STATE),
    'meta is text': lambda: saved(dict(STATE, meta='x')),
}
FLAX: dict[str, Callable[[], bytes]] = {
    'empty': lambda: b'',
    'cut': lambda: cut(flax_array((4,), b'float32', bytes(16)), 0.9),
    'array of 2^32': lambda: msgpack_array(0xFFFFFFFF),
    'map of 2^32': lambda: b'\xdf\xff\xff\xff\xff',
    'bytes of 2^32': lambda: b'\xc6\xff\xff\xff\xffx',
    'nested': lambda: b'\x91' * 100_000 + b'\xc0',
    'array of 2^60': lambda: flax_array((1 << 60,), b'float32', bytes(16)),
    'array of nothing': lambda: flax_array((0, 1 << 60), b'float32', b''),
    'other dtype': lambda: flax_array((4,), b'Tensor', bytes(16)),
    'odd bytes': lambda: flax_array((4,), b'float32', bytes(15)),
    'many empty maps': lambda: msgpack_array(1_000_000) + b'\x80' * 1_000_000,
    'objects': lambda: npz(w=np.array([Touch()], dtype=object)),
    'npz bomb': lambda: npz(w=np.zeros(BOMB // 4, np.float32)),
    'npz of 2^60': lambda: npz_header(f'({1 << 60},)'),
    'npz code in its header': lambda: npz_header("(__import__('os').system('touch executed'),)"),
    'npz of text': lambda: npz(w=np.array(['a'])),
    'npz names': lambda: npz(**{'../a': np.ones(2), 'a': np.ones(2), 'a/b': np.ones(2)}),
}
