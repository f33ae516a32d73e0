"""Folding the two paths of every slide attention of a trained model into one, for inference."""

from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmlocalattn.files import check_file
from mmlocalattn.layers.slide_attention import SlideAttention
from mmlocalattn.training import load_config, load_weights, read_checkpoint, save_checkpoint

TOLERANCE = 1e-5
"""Largest difference of a map after merging, relative to its largest absolute value."""


def merge_checkpoint(config: str, src: str | Path, dst: str | Path) -> float:
    """Merge a checkpoint; nothing is written unless the backbone computes the same as before.

    The result loads wherever ``src`` does.

    Args:
        config: With the model, as for :func:`~mmlocalattn.training.config.load_config`.
        src: Checkpoint with two paths.
        dst: Checkpoint to write.

    Returns:
        The largest difference in the maps of a random image, over their largest absolute value.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If the model has no slide attention, ``src`` is not of it or merged already, or
            the merged model computes something else.
    """
    check_file(dst)
    read_checkpoint(src, mmap=True)
    cfg = load_config(config)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = MODELS.build(cfg.model).eval()
    layers = slide_attention_layers(model)
    if not layers:
        raise ValueError(f'the model of {config} has no slide attention to merge')
    checkpoint = load_weights(model, src)
    names = checkpoint.get('state_dict', checkpoint)
    if merged := [layer for layer in layers if f'{layer}.merged.weight' in names]:
        raise ValueError(f'{src}: the paths of {", ".join(merged)} are merged already')
    difference = merge(model)
    meta = dict(checkpoint.get('meta', {}))
    save_checkpoint({'state_dict': model.state_dict(), 'meta': meta}, Path(dst))
    return difference


def merge(model: nn.Module) -> float:
    """Merge every layer of a model, which has a ``backbone``, in place.

    Returns:
        As :func:`merge_checkpoint`.

    Raises:
        ValueError: If the difference is more than rounding.
    """
    backbone: Any = model.backbone
    convolutions = (module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    image = torch.randn(1, next(convolutions).in_channels, 224, 224)
    with torch.inference_mode():
        before = backbone(image)
        for layer in slide_attention_layers(model).values():
            layer.merge()
        after = backbone(image)
    error = max(float((y - x).abs().max() / x.abs().max()) for x, y in zip(before, after))
    if not error <= TOLERANCE:  # NaN too
        raise ValueError(f'merged outputs differ by {error:.1e} of their largest value')
    return error


def slide_attention_layers(model: nn.Module) -> dict[str, SlideAttention]:
    """The layers to merge, by their names."""
    return {n: module for n, module in model.named_modules() if isinstance(module, SlideAttention)}
