"""Initial weights that several released models share."""

import math

from torch import nn


def init_linear(module: nn.Module) -> None:
    """Linear layers as in ViT: normal weights of deviation 0.02, no bias. For ``Module.apply``.

    The released codes cut the distribution off at 2, which is a hundred deviations away.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_conv(module: nn.Module) -> None:
    """Convolutions as in EfficientNet: normal by fan-out, no bias. For :meth:`nn.Module.apply`."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
