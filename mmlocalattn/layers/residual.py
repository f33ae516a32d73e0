"""Residual additions and activations that allocate nothing in inference."""

from torch import Tensor
from torch.nn import functional as F


def add_residual(branch: Tensor, x: Tensor) -> Tensor:
    """Add an input to its branch.

    In place where no gradient is recorded: fresh memory for a large map costs more than the sum.
    Autograd would pay for it with copies, since the branch is often a view.

    Args:
        branch: Any shape, computed from ``x`` and not used again.
        x: Same shape.

    Returns:
        ``branch + x``.
    """
    if branch.requires_grad or branch.dtype != x.dtype:  # autocast may have lowered the branch
        return branch + x
    return branch.add_(x)


def relu(x: Tensor) -> Tensor:
    """Apply ReLU, in place where no gradient is recorded.

    Args:
        x: Any shape, not used again. Where a gradient is recorded, the operator that made it may
            keep it for backward.

    Returns:
        Same shape.
    """
    return F.relu(x, inplace=not x.requires_grad)
