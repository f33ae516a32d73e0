"""Put a backbone of this package, or a user's data, into any config of the three toolboxes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmlocalattn.adapt.zoo import BACKBONES

__all__ = ['BACKBONES', 'CannotAdapt', 'describe_changes', 'fit_to_data', 'swap_backbone']

if TYPE_CHECKING:
    from mmlocalattn.adapt.data import fit_to_data
    from mmlocalattn.adapt.swap import CannotAdapt, describe_changes, swap_backbone
else:

    def __getattr__(name: str) -> Any:
        """What needs PyTorch and MMEngine, once it is asked for: command lines need the names."""
        if name in __all__:
            module = 'data' if name == 'fit_to_data' else 'swap'
            return getattr(import_module(f'mmlocalattn.adapt.{module}'), name)
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
