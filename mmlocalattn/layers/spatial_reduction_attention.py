"""Attention of all positions to a map of lower resolution (PVT)."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmlocalattn.layers.patch_embed import PatchEmbed


class SpatialReductionAttention(nn.Module):
    """Multi-head attention to patches of the map, with its projections.

    Source: ``Attention`` in PVT's ``pvt.py``.

    Args:
        dim: Channels, a multiple of ``num_heads``.
        num_heads: Attention heads.
        sr_ratio: Side of the patches that become one key; 1 attends to every position.

    Raises:
        ValueError: If ``dim`` is not a multiple of ``num_heads``.
    """

    def __init__(self, dim: int, num_heads: int, sr_ratio: int = 1) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'dim must be a multiple of num_heads, got {dim=}, {num_heads=}')
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.reduction = PatchEmbed(dim, dim, sr_ratio, sr_ratio) if sr_ratio > 1 else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        query = self.q(x).flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        pairs = self.kv(self.reduction(x)).flatten(1, 2).unflatten(-1, (2, self.num_heads, -1))
        key, value = pairs.permute(2, 0, 3, 1, 4)  # each (B, num_heads, positions, head_dim)
        output = F.scaled_dot_product_attention(query, key, value)
        return self.proj(output.transpose(1, 2).reshape(x.shape))
