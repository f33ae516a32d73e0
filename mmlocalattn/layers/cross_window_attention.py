"""Attention in vertical and horizontal stripes at once (CSwin, arXiv 2107.00652)."""

from functools import partial

import torch
from torch import Tensor, nn

from mmlocalattn.layers.depthwise_conv import DepthwiseConv2d
from mmlocalattn.layers.residual import add_residual
from mmlocalattn.layers.window import attend, map_windows


class CrossWindowAttention(nn.Module):
    """Multi-head attention whose heads see a vertical or a horizontal stripe of the map.

    Half of the heads each; or all heads see the whole map. A 3x3 depthwise convolution of the
    values inside each stripe (LePE) adds positions. The last stripe is narrower where the others
    do not cover the map: :func:`~mmlocalattn.layers.window.map_windows`. Source: ``LePEAttention``
    in CSwin's ``cswin.py``; for segmentation its code pads the map with keys of zero instead.

    Args:
        dim: Channels, a multiple of ``num_heads``.
        num_heads: Attention heads, even unless all see the whole map.
        split_size: Width of the stripes; None is the whole map.

    Raises:
        ValueError: If ``dim`` or ``num_heads`` cannot be divided so.
    """

    def __init__(self, dim: int, num_heads: int, split_size: int | None) -> None:
        super().__init__()
        self.num_groups = 1 if split_size is None else 2
        if dim % num_heads or num_heads % self.num_groups:
            raise ValueError(
                f'dim must be a multiple of num_heads, and num_heads of {self.num_groups}, '
                f'got {dim=}, {num_heads=}'
            )
        self.num_heads = num_heads
        self.split_size = split_size
        self.qkv = nn.Linear(dim, 3 * dim)
        self.lepe = nn.ModuleList(
            DepthwiseConv2d(dim // self.num_groups, 3) for _ in range(self.num_groups)
        )
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        stripes = [(None, self.split_size), (self.split_size, None)]
        groups = self.qkv(x).unflatten(-1, (3, self.num_groups, -1)).unbind(4)
        outputs = [
            map_windows(partial(self._attend, lepe), group, stripe)
            for lepe, group, stripe in zip(self.lepe, groups, stripes)
        ]
        return self.proj(torch.cat(outputs, -1))

    def _attend(self, lepe: nn.Module, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attention inside windows (N, h, w, 3, C) of query, key and value: (N, h, w, C)."""
        heads = self.num_heads // self.num_groups
        query, key, value = (
            tensor.flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2)
            for tensor in windows.unbind(3)
        )
        output = attend(query, key, value, None, mask)
        output = output.transpose(1, 2).reshape(*windows.shape[:3], -1)
        return add_residual(output, lepe(windows[:, :, :, 2]))
