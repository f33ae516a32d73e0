"""Learned absolute positions on maps of any size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocalattn.layers.symbolic_size import is_symbolic


class PositionEmbedding(nn.Module):
    """Add a learned map, resized bilinearly where the size differs.

    Source: ``_get_pos_embed`` in PVT's ``pvt.py``.

    Args:
        dim: Channels.
        side: Height and width of the learned map.
    """

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(1, side, side, dim), std=0.02)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        positions: Tensor = self.pos_embed
        # To its own size it changes nothing.
        if is_symbolic(*x.shape[1:3]) or positions.shape[1:3] != x.shape[1:3]:
            positions = F.interpolate(
                positions.permute(0, 3, 1, 2), size=x.shape[1:3], mode='bilinear'
            ).permute(0, 2, 3, 1)
        return x + positions.to(x.dtype)
