"""Stochastic depth and its schedule."""

from collections.abc import Sequence

from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop the branch of whole samples in training, scale the kept ones by ``1 / (1 - rate)``.

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
    """Rates from 0 at the first block linearly to ``rate`` at the last, one list per stage."""
    blocks = iter(range(sum(depths)))
    last = max(sum(depths) - 1, 1)
    return [[rate * next(blocks) / last for _ in range(depth)] for depth in depths]
