"""Depthwise convolution of a channels-last map."""

import torch
from torch import Tensor, nn

from mmlocalattn.layers.residual import add_residual
from mmlocalattn.ops._library import is_autocasting


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution that keeps the size, on (B, H, W, C) maps.

    A channels-last map is an NCHW tensor in ``torch.channels_last`` order, so nothing is copied
    on the way.

    Args:
        dim: Channels.
        kernel_size: Odd.
        residual: Add the input to the output. In fp32 the kernel does it by its centre, which
            saves a pass over the map in forward and one in backward; in lower precisions
            ``1 + weight`` would round the weight away.
    """

    identity: Tensor

    def __init__(self, dim: int, kernel_size: int, residual: bool = False) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.residual = residual
        identity = torch.zeros(kernel_size, kernel_size)
        identity[kernel_size // 2, kernel_size // 2] = 1
        self.register_buffer('identity', identity, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        folds = self.residual and x.dtype == torch.float32 and not is_autocasting(x)
        weight = self.weight + self.identity if folds else self.weight
        output = self._conv_forward(x.permute(0, 3, 1, 2), weight, self.bias)
        output = output.permute(0, 2, 3, 1).contiguous()
        return add_residual(output, x) if self.residual and not folds else output
