"""Deprecated: the old place of what is in ``training``, ``data`` and ``visualisation`` now.

Old configs import it (``custom_imports``) to find what ``training`` registers.
"""

import importlib
import sys
import warnings
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
    'checkpoint': 'mmlocalattn.training.checkpoint',
    'data_check': 'mmlocalattn.data.check',
    'exact_resume': 'mmlocalattn.training.resume',
    'export': 'mmlocalattn.export.files',
    'history': 'mmlocalattn.training.history',
    'launch': 'mmlocalattn.training.config',
    'layer_decay': 'mmlocalattn.training.layer_decay',
    'onnx_operators': 'mmlocalattn.export.onnx_operators',
    'pictures': 'mmlocalattn.visualisation.pictures',
    'visualisation': 'mmlocalattn.visualisation.attention',
}


def _moved(old: str, new: str, name: str) -> Any:
    """What the old module's ``name`` is called in the new one, with a warning that says so."""
    value = getattr(importlib.import_module(new), name)
    warnings.warn(
        f'{old}.{name} is {new}.{name} now; the old name goes with the next minor version',
        DeprecationWarning,
        stacklevel=3,
    )
    return value


def __getattr__(name: str) -> Any:
    for module, names in _MOVED.items():
        if name in names:
            return _moved(__name__, module, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


class _MovedModule(ModuleType):
    """Stands for a module that has another name now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')
        return _moved(self.__name__, _MOVED_MODULES[self.__name__.rpartition('.')[2]], name)


for _name in _MOVED_MODULES:
    sys.modules[f'{__name__}.{_name}'] = _MovedModule(f'{__name__}.{_name}')
