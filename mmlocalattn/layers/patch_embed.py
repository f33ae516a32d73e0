"""Convolutions that lower the resolution: the stem and the step between two stages."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmlocalattn.layers.norm import build_norm


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
