"""Convolutions that lower the resolution: the stem and the step between two stages."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocalattn.layers.norm import build_norm
from mmlocalattn.layers.symbolic_size import is_symbolic, round_up


class ConvStem(nn.Sequential):
    """Four 3x3 convolutions that turn an image into a map of stride 4.

    Source: ``PatchEmbed`` in SSViT's ``SSViT.py``.

    Args:
        in_channels: Of the image.
        out_channels: Of the map; half of them inside.
        norm_cfg: See :func:`~mmlocalattn.layers.norm.build_norm`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm_cfg: Mapping | None = None
    ) -> None:
        hidden = out_channels // 2
        layers: list[nn.Module] = []
        for source, target, stride in (
            (in_channels, hidden, 2),
            (hidden, hidden, 1),
            (hidden, out_channels, 2),
            (out_channels, out_channels, 1),
        ):
            conv = nn.Conv2d(source, target, 3, stride=stride, padding=1)
            layers += [conv, build_norm(norm_cfg, target), nn.GELU()]
        super().__init__(*layers[:-1])

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, ceil(H / 4), ceil(W / 4), out_channels)."""
        image = image.contiguous(memory_format=torch.channels_last)
        return super().forward(image).permute(0, 2, 3, 1).contiguous()


class ConvTokenizer(nn.Module):
    """Two 3x3 convolutions of stride 2 and a LayerNorm.

    Source: ``ConvTokenizer`` in NAT's ``nat.py``.

    Args:
        in_channels: Of the image.
        out_channels: Of the map; half of them inside.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_channels, out_channels // 2, 3, stride=2, padding=1),
            nn.Conv2d(out_channels // 2, out_channels, 3, stride=2, padding=1),
        )
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, ceil(H / 4), ceil(W / 4), out_channels)."""
        image = image.contiguous(memory_format=torch.channels_last)
        return self.norm(self.proj(image).permute(0, 2, 3, 1).contiguous())


class ConvDownsample(nn.Module):
    """3x3 convolution of stride 2 and a norm.

    Source: ``PatchMerging`` in SSViT's ``SSViT.py``; with a LayerNorm and without a bias
    ``ConvDownsampler`` in NAT's ``nat.py``.

    Args:
        in_channels: Before.
        out_channels: After.
        norm_cfg: See :func:`~mmlocalattn.layers.norm.build_norm`.
        bias: Of the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm_cfg: Mapping | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=bias)
        self.norm = build_norm(norm_cfg, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_channels) to (B, ceil(H / 2), ceil(W / 2), out_channels)."""
        return self.norm(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1).contiguous()


class PatchEmbed(nn.Module):
    """Convolution to a lower resolution and a LayerNorm.

    Where the released models drop rows and columns behind the last whole stride, here zeros fill
    it up.

    Args:
        in_channels: Before.
        out_channels: After.
        kernel_size: Side of a patch.
        stride: From patch to patch.
        padding: Rows of zeros above the map, likewise columns.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int = 0
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_channels) to (B, ceil(H / stride), ceil(W / stride), out_channels)."""
        return self.norm(strided_conv(self.proj, x))


class PatchStem(PatchEmbed):
    """:class:`PatchEmbed` of an image."""

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, ceil(H / stride), ceil(W / stride), out_channels)."""
        return super().forward(image.permute(0, 2, 3, 1).contiguous())


class PatchMerging(nn.Module):
    """Four neighbors side by side, a LayerNorm, and a projection.

    Source: ``PatchMerging`` in Swin's ``swin_transformer.py``.

    Args:
        in_channels: Before.
        out_channels: After.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels)
        self.reduction = nn.Linear(4 * in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_channels) to (B, ceil(H / 2), ceil(W / 2), out_channels)."""
        height, width = x.shape[1:3]
        if is_symbolic(height, width) or height % 2 or width % 2:
            below, right = (round_up(side, 2) - side for side in (height, width))
            x = F.pad(x, (0, 0, 0, right, 0, below))
        x = x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2))  # (B, H', row, W', column, C)
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


def strided_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve a channels-last map, with zeros behind it so that no position is left out.

    Args:
        conv: With equal stride, kernel size and padding on both axes.
        x: (B, H, W, C).

    Returns:
        (B, ceil(H / stride), ceil(W / stride), C'), contiguous.
    """
    kernel_size, stride, padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    reach = kernel_size - 2 * padding  # of the last window, from its position
    below, right = (round_up(side, stride) - stride + reach - side for side in x.shape[1:3])
    if reach < stride:
        below, right = max(below, 0), max(right, 0)
    if reach > 1 and (is_symbolic(below, right) or below or right):
        x = F.pad(x, (0, 0, 0, right, 0, below))
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()
