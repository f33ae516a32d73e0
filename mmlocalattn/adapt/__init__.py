"""Put a backbone of this package into any detection, segmentation or classification config."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmlocalattn.adapt.zoo import BACKBONES

__all__ = ['BACKBONES', 'CannotAdapt', 'describe_changes', 'swap_backbone']

if TYPE_CHECKING:
    from mmlocalattn.adapt.swap import CannotAdapt, describe_changes, swap_backbone
else:

    def __getattr__(name: str) -> Any:
        """What needs PyTorch and MMEngine, once it is asked for: command lines need the names."""
        if name in __all__:
            return getattr(import_module('mmlocalattn.adapt.swap'), name)
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
