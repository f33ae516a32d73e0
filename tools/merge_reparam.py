"""Fold the two paths of every slide attention of a trained model into one, for inference.

The result loads wherever the given checkpoint does: ``tools/test.py CONFIG DST``. Nothing is
written unless the backbone computes the same from a random image before and after.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from convert_checkpoint import write
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from torch import nn

from mmlocalattn.layers.slide_attention import SlideAttention
from mmlocalattn.training import allow_mmengine_checkpoints, load_config

TOLERANCE = 1e-5  # of the largest absolute value of a map


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('config', help='config file of the model')
    parser.add_argument('src', type=Path, help='checkpoint with two paths')
    parser.add_argument('dst', type=Path, help='checkpoint to write')
    args = parser.parse_args(args)
    try:
        model, meta = load_model(args.config, args.src)
        difference = merge(model)
        write({'state_dict': model.state_dict(), 'meta': meta}, args.dst)
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f'{args.src}: {error}\nNothing was written.') from error
    saved = args.src.stat().st_size - args.dst.stat().st_size
    print(f'{args.dst}: {saved / 1e3:.1f} kB smaller, outputs differ by {difference:.1e} at most')


def load_model(config: str, checkpoint: Path) -> tuple[nn.Module, dict]:
    """The model of a config with the weights of a checkpoint, and what is known about these.

    Raises:
        RuntimeError: If names or shapes of the weights do not match the model; lists them.
        ValueError: If the model has no slide attention, or its paths are merged already.
    """
    cfg = load_config(config)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = MODELS.build(cfg.model).eval()
    layers = slide_attention_layers(model)
    if not layers:
        raise ValueError(f'the model of {config} has no slide attention to merge')
    allow_mmengine_checkpoints()
    loaded = load_checkpoint(model, str(checkpoint), map_location='cpu', strict=True)
    weights = loaded.get('state_dict', loaded)
    merged = [name for name in layers if f'{name}.merged.weight' in weights]
    if merged:
        raise ValueError(f'the paths of {", ".join(merged)} are merged already')
    return model, dict(loaded.get('meta', {}))


def merge(model: nn.Module) -> float:
    """Merge every layer in place.

    Returns:
        The largest difference in the maps of a random image, over their largest absolute value.

    Raises:
        ValueError: If that is more than rounding.
    """
    backbone = model.backbone
    convolutions = (module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    image = torch.randn(1, next(convolutions).in_channels, 224, 224)
    with torch.inference_mode():
        before = backbone(image)
        for layer in slide_attention_layers(model).values():
            layer.merge()
        after = backbone(image)
    error = max(float((y - x).abs().max() / x.abs().max()) for x, y in zip(before, after))
    if not error <= TOLERANCE:
        raise ValueError(f'merged outputs differ by {error:.1e} of their largest value')
    return error


def slide_attention_layers(model: nn.Module) -> dict[str, SlideAttention]:
    return {n: module for n, module in model.named_modules() if isinstance(module, SlideAttention)}


if __name__ == '__main__':
    main()
