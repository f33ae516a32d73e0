"""Neighborhood attention as a layer."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmlocalattn.layers.window import fit_dilation, fit_window
from mmlocalattn.ops.neighborhood import neighborhood_attention


class NeighborhoodAttention(nn.Module):
    """Multi-head neighborhood attention with its projections.

    See :func:`~mmlocalattn.ops.neighborhood.neighborhood_attention`. A window that is larger than
    the map gives way on each axis alone: first the dilation falls to ``side // kernel_size``, so
    that all taps and their position biases stay in use; where even adjacent taps are too many, the
    kernel shrinks to the largest odd size that fits and sees the part of the bias that belongs to
    its offsets. With ``pad`` the map gives way instead: it grows by zeros, to which queries then
    attend, as in ``NeighborhoodAttention2D`` of NATTEN 0.14, with which NAT and DiNAT were trained.

    Args:
        dim: Channels, a multiple of ``num_heads``.
        num_heads: Attention heads.
        kernel_size: Odd window size in taps, the same on both axes.
        dilation: Distance between taps in positions, where the map allows it.
        rel_pos_bias: Learn a bias for each relative position and head.
        qkv_bias: Bias of the projection to query, key and value.
        pad: Append zeros below and to the right of a map that is smaller than the window.

    Raises:
        ValueError: If ``dim`` is not a multiple of ``num_heads``, ``kernel_size`` is not odd, or
            ``dilation`` < 1.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 7,
        dilation: int = 1,
        rel_pos_bias: bool = True,
        qkv_bias: bool = True,
        pad: bool = False,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'dim must be a multiple of num_heads, got {dim=}, {num_heads=}')
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd and positive, got {kernel_size=}')
        if dilation < 1:
            raise ValueError(f'dilation must be at least 1, got {dilation=}')
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.pad = pad
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.rel_pos_bias: nn.Parameter | None = None
        if rel_pos_bias:
            side = 2 * kernel_size - 1
            self.rel_pos_bias = nn.Parameter(
                nn.init.normal_(torch.empty(num_heads, side, side), std=0.02)
            )
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        rows, columns = x.shape[1:3]
        missing = [max(self.kernel_size * self.dilation - side, 0) for side in (rows, columns)]
        if self.pad and any(missing):
            x = functional.pad(x, (0, 0, 0, missing[1], 0, missing[0]))
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).view(batch, height, width, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.unbind(3)  # each (B, H, W, num_heads, head_dim)
        size, kernel = (height, width), (self.kernel_size, self.kernel_size)
        dilation = fit_dilation(size, kernel, (self.dilation, self.dilation))
        kernel, dilation = fit_window(size, kernel, dilation)
        output = neighborhood_attention(query, key, value, kernel, dilation, self._bias(kernel))
        return self.proj(output[:, :rows, :columns].flatten(3))

    def _bias(self, kernel: tuple[int, int]) -> Tensor | None:
        """The centre of the bias, (num_heads, 2 * kh - 1, 2 * kw - 1) for a window (kh, kw)."""
        if self.rel_pos_bias is None:
            return None
        rows, columns = (slice(self.kernel_size - k, self.kernel_size + k - 1) for k in kernel)
        return self.rel_pos_bias[:, rows, columns]
