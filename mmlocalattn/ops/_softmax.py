"""The softmax over the taps of windows, and what a backward operator needs of it."""

import torch
from torch import Tensor


def log_sum_exp(logits: Tensor) -> Tensor:
    """The log-sum-exp over the last axis as two numbers, whose sum it is.

    They are the largest logit, and how far the log-sum-exp is above it. One number would have the
    rounding of large logits, in fp32 1e-3 at 1e4, and give it to all weights of a window.

    Args:
        logits: (..., taps).

    Returns:
        (..., 2)
    """
    most = logits.detach().amax(-1)
    return torch.stack((most, (logits - most[..., None]).exp().sum(-1).log()), -1)


def softmax(logits: Tensor, logsumexp: Tensor) -> Tensor:
    """The weights (..., taps) of logits of that shape and their `log_sum_exp`."""
    most, rest = logsumexp[..., None, :].unbind(-1)
    return (logits - most - rest).exp()
