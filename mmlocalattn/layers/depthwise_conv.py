"""Depthwise convolution of a channels-last map."""

from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution that keeps the size, on (B, H, W, C) maps.

    A channels-last map is an NCHW tensor in ``torch.channels_last`` order, so nothing is copied
    on the way.

    Args:
        dim: Channels.
        kernel_size: Odd.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()
