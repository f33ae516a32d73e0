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

import mmlocalattn.training  # noqa: F401  (registers)

_MOVED = {
    'mmlocalattn.training': (
        'ExactResumeHook',
        'History',
        'LayerDecayOptimWrapperConstructor',
        'adapt_to_device',
        'add_common_arguments',
        'add_config_arguments',
        'allow_mmengine_checkpoints',
        'config_of',
        'last_whole_checkpoint',
        'load_config',
        'read_history',
        'read_seed',
    ),
    'mmlocalattn.data': ('check_data',),
    'mmlocalattn.visualisation': ('record_attention',),
}
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

__all__ = [name for names in _MOVED.values() for name in names]


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
    return _moved(__name__, [new for new, names in _MOVED.items() if name in names], name)


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
