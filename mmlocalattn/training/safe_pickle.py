"""Checkpoints of which nothing is executed, for torch before 2.4.

There ``torch.load(weights_only=True)`` takes tensors alone and cannot be told what else to allow.
``torch.load(file, pickle_module=only(allowed))`` does the same with what is allowed.
"""

import codecs
import pickle
from collections import Counter, OrderedDict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch


def only(allowed: Mapping[str, Any]) -> Any:
    """A stand-in for the module :mod:`pickle` that makes tensors, and what is allowed by name."""
    rebuild = torch._utils
    known = {
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

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full_name = f'{"builtins" if module == "__builtin__" else module}.{name}'
            if full_name not in known:
                raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {full_name}')
            return known[full_name]

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    return SimpleNamespace(__name__='pickle', Unpickler=Unpickler, load=load)
