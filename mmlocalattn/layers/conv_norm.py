"""Convolution and normalisation of a channels-last map."""

from collections.abc import Mapping

from torch import Tensor, nn

from mmlocalattn.layers.norm import build_norm, fixed_affine


class ConvNorm(nn.Module):
    """A convolution without bias and the norm behind it, on (B, H, W, C) maps.

    A channels-last map is an NCHW tensor in ``torch.channels_last`` order, so nothing is copied on
    the way. BatchNorm with fixed statistics is folded into the weights of the convolution.

    Args:
        in_channels: Before.
        out_channels: After.
        kernel_size: Odd.
        stride: A map of H rows gets ceil(H / stride).
        norm_cfg: See :func:`~mmlocalattn.layers.norm.build_norm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        norm_cfg: Mapping | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False
        )
        self.norm = build_norm(norm_cfg, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_channels) to (B, ceil(H / stride), ceil(W / stride), out_channels)."""
        image = x.permute(0, 3, 1, 2)
        affine = fixed_affine(self.norm)
        if affine is None:
            return self.norm(self.conv(image)).permute(0, 2, 3, 1)
        scale, shift = affine
        weight = self.conv.weight * scale[:, None, None, None]
        return self.conv._conv_forward(image, weight, shift).permute(0, 2, 3, 1)
