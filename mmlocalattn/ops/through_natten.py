"""Neighborhood attention through an installed NATTEN, imported only where a user chooses it.

NATTEN's layout and windows are ours. Its autograd differentiates the result, so that its backward
kernels run too.
"""

import functools
import inspect
import warnings

import natten
import torch
from torch import Tensor

from mmlocalattn.ops._library import autocasted, is_compiling

if tuple(map(int, natten.__version__.split('.')[:2])) < (0, 20):
    raise ImportError(f'natten {natten.__version__} is too old, 0.20 is needed')

from natten import na2d
from natten.backends import get_compatible_backends

_ASKS_QUERY_ONLY = len(inspect.signature(get_compatible_backends).parameters) == 2  # 0.20


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    kernel_size: tuple[int, int],
    dilation: tuple[int, int],
    scale: float,
) -> Tensor | None:
    """The operator, whose arguments are checked.

    Returns:
        Like ``query`` (in the dtype of autocast, if enabled); None if NATTEN does not serve the
        call, which a warning says once for each cause.
    """
    query, key, value = autocasted(query, key, value)
    reason = _why_not(query, key, value, bias, kernel_size, scale)
    if reason:
        if not is_compiling():
            _say_once(reason)
        return None
    with torch.autocast(query.device.type, enabled=False):
        return na2d(query, key, value, kernel_size, dilation=dilation, scale=scale)


def _why_not(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    kernel_size: tuple[int, int],
    scale: float,
) -> str:
    """What NATTEN does not serve; empty if it does."""
    if bias is not None:
        return 'position bias'
    if min(kernel_size) == 1:
        return 'windows of one position along an axis'
    if query.numel() == 0:
        return 'empty maps'
    if not scale > 0:
        return 'scales that are not positive'
    on_cpu = query.device.type == 'cpu'
    if on_cpu and torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)):
        return 'gradients on the CPU'
    asked = (query,) if _ASKS_QUERY_ONLY else (query, key, value)
    backends = get_compatible_backends(*asked, torch_compile=False)
    # Eager FlexAttention holds the products of all positions with all: on a GPU no help.
    if not any(on_cpu or backend != 'flex-fna' for backend in backends):
        return f'head_dim {query.shape[-1]} in {query.dtype} on {query.device.type}'
    return ''


@functools.cache
def _say_once(reason: str) -> None:
    warnings.warn(f'NATTEN does not serve {reason}: kernels of mmlocalattn do.', stacklevel=4)
