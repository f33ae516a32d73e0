"""Initial weights that several released models share."""

from torch import nn


def init_linear(module: nn.Module) -> None:
    """Linear layers as in ViT: weights of deviation 0.02, no bias. For :meth:`nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
