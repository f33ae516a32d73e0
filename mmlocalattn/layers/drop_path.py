"""Stochastic depth and its schedule."""

from collections.abc import Sequence

from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop a residual branch for whole samples during training; the kept ones are scaled by ``1 / (1 - rate)``.

    Args:
        rate: Probability of dropping, 0 <= rate < 1.

    Raises:
        ValueError: If ``rate`` is out of range.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f'drop path rate must be at least 0 and below 1, got {rate=}')
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same shape."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        """``rate`` in the printed model."""
        return f'rate={self.rate:.3g}'


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that rise linearly from 0 at the first block to ``rate`` at the last, grouped by stage."""
    last = max(sum(depths) - 1, 1)
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [[rate * block / last for block in range(start, start + depth)] for start, depth in zip(starts, depths)]
