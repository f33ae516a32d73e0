"""Residual additions that allocate nothing in inference."""

from torch import Tensor


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
