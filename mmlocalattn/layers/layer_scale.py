"""LayerScale: a learned factor per channel on a residual branch (arXiv 2103.17239)."""

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """Multiply channels by learned factors.

    Args:
        dim: Channels.
        init_value: Initial factor.
    """

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to the same shape."""
        return x * self.weight
