"""Put a backbone of this package into any detection, segmentation or classification config."""

from mmlocalattn.adapt.swap import CannotAdapt, describe_changes, swap_backbone
from mmlocalattn.adapt.zoo import BACKBONES

__all__ = ['BACKBONES', 'CannotAdapt', 'describe_changes', 'swap_backbone']
