"""NATTEN's 2-d functions on :func:`~mmlocalattn.ops.neighborhood.neighborhood_attention`.

NATTEN has had no CPU kernels and no position bias since 0.20. With ``from mmlocalattn.compat.natten
import na2d`` in the place of ``from natten import na2d``, or of ``from natten.functional import
na2d`` of 0.17, the same code runs wherever the operators of this package do, on a CPU too. NATTEN
itself is not needed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor

from mmlocalattn.ops.neighborhood import neighborhood_attention


def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = 1,
    dilation: int | tuple[int, int] | None = 1,
    is_causal: bool | tuple[bool, bool] | None = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    attention_kwargs: Mapping[str, Any] | None = None,
    backend: str | None = None,
    q_tile_shape: tuple[int, int] | None = None,
    kv_tile_shape: tuple[int, int] | None = None,
    backward_q_tile_shape: tuple[int, int] | None = None,
    backward_kv_tile_shape: tuple[int, int] | None = None,
    backward_kv_splits: tuple[int, int] | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: Any = None,
    torch_compile: bool = False,
    return_lse: bool = False,
    *,
    rpb: Tensor | None = None,
) -> Tensor:
    """Attend to the neighborhood of every position of a map, with the signature of NATTEN 0.21.

    Calls with the names of 0.17 work too, ``rpb`` among them. What NATTEN takes to choose among its
    kernels (``attention_kwargs`` and all from ``backend`` to ``torch_compile``) changes no result
    and is ignored.

    Args:
        query: (B, H, W, num_heads, head_dim).
        key: Same shape and dtype: no grouped heads.
        value: Same shape and dtype.
        kernel_size: Odd window size in taps; ``kernel_size * dilation`` must fit the map.
        stride: 1. The fifth argument of 0.17 was ``dilation``, which has to be named here.
        dilation: Distance between taps in positions.
        is_causal: False.
        scale: Factor on the logits, ``head_dim ** -0.5`` if None or, as in NATTEN, 0.
        additional_keys: None.
        additional_values: None.
        attention_kwargs: Ignored.
        backend: Ignored.
        q_tile_shape: Ignored.
        kv_tile_shape: Ignored.
        backward_q_tile_shape: Ignored.
        backward_kv_tile_shape: Ignored.
        backward_kv_splits: Ignored.
        backward_use_pt_reduction: Ignored.
        run_persistent_kernel: Ignored.
        kernel_schedule: Ignored.
        torch_compile: Ignored.
        return_lse: False.
        rpb: Relative position bias of 0.17 (num_heads, 2 * kh - 1, 2 * kw - 1), with gradients.

    Returns:
        (B, H, W, num_heads, head_dim).

    Raises:
        ValueError: If shapes, dtypes or devices do not match, or the window is even or does not
            fit.
        NotImplementedError: For what is not served here: strides, causal masks, additional keys
            and values, the log-sum-exp.
    """
    if not _is_each(stride, 1):
        raise NotImplementedError(
            f"na2d of mmlocalattn has stride 1 only, got {stride=}: if this is NATTEN 0.17's "
            'dilation, write dilation=...'
        )
    if not _is_each(is_causal, False):
        raise NotImplementedError(f'na2d of mmlocalattn has no causal masks, got {is_causal=}')
    if additional_keys is not None or additional_values is not None:
        raise NotImplementedError('na2d of mmlocalattn has no additional_keys, additional_values')
    if return_lse:
        raise NotImplementedError('na2d of mmlocalattn does not return the log-sum-exp: return_lse')
    return neighborhood_attention(
        query,
        key,
        value,
        kernel_size,
        1 if dilation is None else dilation,
        bias=rpb,
        scale=scale or None,
    )


def na2d_qk(*args: Any, **kwargs: Any) -> NoReturn:
    """Refuse the first half of 0.17's unfused attention, which holds all logits in memory."""
    _refuse_half('na2d_qk')


def na2d_av(*args: Any, **kwargs: Any) -> NoReturn:
    """Refuse the second half of 0.17's unfused attention, see :func:`na2d_qk`."""
    _refuse_half('na2d_av')


def _refuse_half(name: str) -> NoReturn:
    raise NotImplementedError(
        f'mmlocalattn has no {name}, one half of an attention: use na2d(query, key, value, '
        'kernel_size, dilation=..., rpb=..., scale=...) of tensors with their heads last, '
        '(B, H, W, num_heads, head_dim)'
    )


def _is_each(value: Any, expected: int | bool) -> bool:
    """Whether an argument, one for both axes or one for each, is what can be served."""
    values = value if isinstance(value, Sequence) else (value,)
    return all(each is None or each == expected for each in values)
