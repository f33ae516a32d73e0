"""Models as files of other runtimes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    'FORMATS',
    'build_exportable',
    'check_forward',
    'check_sizes',
    'default_sizes',
    'describe',
    'export',
    'exportable',
]

if TYPE_CHECKING:
    from mmlocalattn.export.files import FORMATS, export
    from mmlocalattn.export.model import (
        build_exportable,
        check_forward,
        check_sizes,
        default_sizes,
        describe,
    )
    from mmlocalattn.export.modules import exportable
else:

    def __getattr__(name: str) -> Any:
        """What needs PyTorch, once it is asked for: command lines need the names of formats."""
        if name in __all__:
            module = 'files' if name in ('FORMATS', 'export', 'exportable') else 'model'
            return getattr(import_module(f'{__name__}.{module}'), name)
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
