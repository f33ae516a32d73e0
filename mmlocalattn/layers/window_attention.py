"""Attention inside the windows of a grid, as a layer."""

import torch
from torch import Tensor, nn

from mmlocalattn.layers.window import attend, map_windows
from mmlocalattn.ops._window import IntPair, as_pair


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with its projections (Swin, arXiv 2103.14030).

    A grid of windows partitions the map; see :func:`~mmlocalattn.layers.window.map_windows` for
    what happens at its borders. A side of the map that is not longer than the window is one window
    whatever the shift, and a smaller window sees the part of the position bias that belongs to its
    offsets.

    Args:
        dim: Channels, a multiple of ``num_heads``.
        num_heads: Attention heads.
        window_size: int or (height, width).
        shift: int or (rows, columns) by which the grid moves, usually half a window in every
            second block.
        rel_pos_bias: Learn a bias for each offset of a query from a key and each head.
        qkv_bias: Bias of the projection to query, key and value.
        proj_bias: Bias of the projection of the output.

    Raises:
        ValueError: If ``dim`` is not a multiple of ``num_heads``, ``window_size`` is not positive,
            or ``shift`` is not in the window.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: IntPair,
        shift: IntPair = 0,
        rel_pos_bias: bool = True,
        qkv_bias: bool = True,
        proj_bias: bool = True,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'dim must be a multiple of num_heads, got {dim=}, {num_heads=}')
        self.window_size = as_pair(window_size, 'window_size')
        self.shift = as_pair(shift, 'shift')
        if min(self.window_size) < 1:
            raise ValueError(f'window_size must be positive, got {window_size=}')
        if not all(0 <= step < side for step, side in zip(self.shift, self.window_size)):
            raise ValueError(
                f'shift must be at least 0 and below window_size, got {shift=}, {window_size=}'
            )
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.rel_pos_bias: nn.Parameter | None = None
        if rel_pos_bias:
            sides = [2 * side - 1 for side in self.window_size]
            self.rel_pos_bias = nn.Parameter(
                nn.init.trunc_normal_(torch.empty(num_heads, *sides), std=0.02)
            )
        self.proj = nn.Linear(dim, dim, bias=proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        return map_windows(self._attend, x, self.window_size, self.shift)

    def _attend(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attention among the positions of each window (N, h, w, C)."""
        _, height, width, dim = windows.shape
        qkv = self.qkv(windows.flatten(1, 2)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (N, num_heads, h * w, head_dim)
        output = attend(query, key, value, self._bias(height, width), mask)
        return self.proj(output.transpose(1, 2).reshape(-1, height, width, dim))

    def _bias(self, height: int, width: int) -> Tensor | None:
        """Bias of every query (second last) and key (last) of a window, with a batch dimension.

        A view of the table at query minus key: unfolded, it has a window of offsets for each key.
        """
        if self.rel_pos_bias is None:
            return None
        rows, columns = (
            slice(side - used, side + used - 1)
            for side, used in zip(self.window_size, (height, width))
        )
        table = self.rel_pos_bias[:, rows, columns]
        pairs = table.unfold(1, height, 1).unfold(2, width, 1).flip(1, 2)  # keys, then queries
        return pairs.flatten(3).flatten(1, 2).transpose(1, 2)[None]
