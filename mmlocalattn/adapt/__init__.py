"""Put a backbone of this package into any detection, segmentation or classification config."""

from mmlocalattn.adapt.swap import BACKBONES, CannotAdapt, describe_changes, swap_backbone

__all__ = ['BACKBONES', 'CannotAdapt', 'describe_changes', 'swap_backbone']
