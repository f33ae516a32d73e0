"""Checkpoints of which nothing is executed.

Before torch 2.4 ``torch.load(weights_only=True)`` takes tensors alone and cannot be told what else
to allow. ``torch.load(file, pickle_module=only(allowed))`` does the same with what is allowed.
:func:`outline` reads what a file that is refused would hold, for the message that refuses it.
"""

import codecs
import pickle
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


def known_names(allowed: Mapping[str, Any]) -> dict[str, Any]:
    """What a file may ask for, by dotted names: what tensors need, and what is allowed."""
    rebuild = torch._utils
    return {
        '_codecs.encode': codecs.encode,  # of bytes, by NumPy
        'builtins.bytearray': bytearray,
        'builtins.complex': complex,
        'builtins.set': set,
        'collections.Counter': Counter,
        'collections.OrderedDict': OrderedDict,
        'torch.Size': torch.Size,
        'torch.device': torch.device,
        'torch._utils._rebuild_tensor_v2': rebuild._rebuild_tensor_v2,
        'torch._utils._rebuild_parameter': rebuild._rebuild_parameter,
        **{
            f'torch.{name}': value
            for name, value in vars(torch).items()
            if isinstance(value, torch.dtype)
        },
        **{f'torch.{cls.__name__}': cls for cls in torch._storage_classes},
        **allowed,
    }


def only(allowed: Mapping[str, Any]) -> Any:
    """A stand-in for the module :mod:`pickle` that makes tensors, and what is allowed by name."""
    known = known_names(allowed)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full_name = _dotted(module, name)
            if full_name not in known:
                raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {full_name}')
            return known[full_name]

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    return SimpleNamespace(__name__='pickle', Unpickler=Unpickler, load=load)


def _dotted(module: str, name: str) -> str:
    return f'{"builtins" if module == "__builtin__" else module}.{name}'


class StandIn:
    """In the place of an object of a checkpoint: takes whatever a pickle does to it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> 'StandIn':
        """Make one whatever the arguments are."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        """Leave values out."""

    append = add = extend


def outline(path: str | Path) -> tuple[Any, list[str]]:
    """The containers of a checkpoint, with stand-ins for all that is not plain.

    Args:
        path: Of a file of ``torch.save``, in either of its formats.

    Returns:
        The content, and the dotted names of the classes and functions that the file asks for.

    Raises:
        Exception: If it is no such file, or its pickle is broken.
    """
    asked_for: list[str] = []

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            asked_for.append(_dotted(module, name))
            return OrderedDict if asked_for[-1] == 'collections.OrderedDict' else StandIn

        def persistent_load(self, key: Any) -> Any:
            return StandIn  # for a storage, or a class of a model

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith('/data.pkl'))
            with archive.open(name) as file:
                content = Unpickler(file).load()
    else:  # magic number, version and machine come before the content
        with open(path, 'rb') as file:
            for _ in range(4):
                content = Unpickler(file).load()
    return content, list(dict.fromkeys(asked_for))
