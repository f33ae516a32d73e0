"""Deprecated: the old place of what is in ``training``, ``data`` and ``visualisation`` now.

Old configs import it (``custom_imports``) to find what ``training`` registers.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import mmlocalattn.training

_MOVED = ('mmlocalattn.training', 'mmlocalattn.data', 'mmlocalattn.visualisation')
_MOVED_MODULES = {
    'checkpoint': ('mmlocalattn.training.checkpoint',),
    'data_check': ('mmlocalattn.data.check',),
    'exact_resume': ('mmlocalattn.training.resume',),
    'export': ('mmlocalattn.export.files',),
    'history': ('mmlocalattn.training.history',),
    'launch': (
        'mmlocalattn.training.config',
        'mmlocalattn.training.arguments',
        'mmlocalattn.training.launch',
    ),
    'layer_decay': ('mmlocalattn.training.layer_decay',),
    'onnx_operators': ('mmlocalattn.export.onnx_operators',),
    'pictures': ('mmlocalattn.visualisation.pictures',),
    'visualisation': ('mmlocalattn.visualisation.attention',),
}

__all__ = [*mmlocalattn.training.__all__, 'check_data', 'record_attention']


def _moved(old: str, modules: Sequence[str], name: str) -> Any:
    """What the old module's ``name`` is called in one of the new ones, with a warning of it."""
    for new in modules:
        value = getattr(importlib.import_module(new), name, None)
        if value is not None:
            warnings.warn(
                f'{old}.{name} is {new}.{name} now; the old name goes with the next minor version',
                DeprecationWarning,
                stacklevel=3,
            )
            return value
    raise AttributeError(f'module {old!r} has no attribute {name!r}')


def __getattr__(name: str) -> Any:
    return _moved(__name__, _MOVED if name in __all__ else (), name)


class _MovedModule(ModuleType):
    """Stands for a module that has another name now."""

    def __getattr__(self, name: str) -> Any:
        hidden = name.startswith('__')  # Python asks for some
        modules = () if hidden else _MOVED_MODULES[self.__name__.rpartition('.')[2]]
        return _moved(self.__name__, modules, name)


for _name in _MOVED_MODULES:
    _module = _MovedModule(f'{__name__}.{_name}')
    _module.__spec__ = ModuleSpec(_module.__name__, None)
    sys.modules[_module.__name__] = globals()[_name] = _module
