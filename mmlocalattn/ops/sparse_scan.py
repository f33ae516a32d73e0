"""Sparse scan attention (S3A) of SSViT: two neighborhood attentions with one query and key.

Source: Vision Transformer with Sparse Scan Prior (arXiv 2405.13335); ``ConvDecop`` in the released
``classfication_release/SSViT.py``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmlocalattn.ops._implementation import is_through_natten
from mmlocalattn.ops._library import (
    autocasted,
    is_exporting,
    register_operator,
)
from mmlocalattn.ops._window import IntPair, as_pair, check_maps, check_window
from mmlocalattn.ops.flops import multiply_adds
from mmlocalattn.ops.neighborhood import (
    neighborhood_attention,
    neighborhood_attention_backward_reference,
    neighborhood_attention_reference,
)


def sparse_scan_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    local_kernel: IntPair,
    anchor_kernel: IntPair,
    anchor_dilation: IntPair,
    scale: float | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Gather, for every position, what a grid of anchors sees around itself.

    Step 1: ``inner = NA(query, key, value; local_kernel, dilation 1)``, a local window around
    every position. Step 2: ``output = NA(query, key, inner; anchor_kernel, anchor_dilation)``, the
    anchor grid. A kernel of 1 skips its step. NA is
    :func:`~mmlocalattn.ops.neighborhood.neighborhood_attention`.

    Args:
        query: (B, H, W, num_heads, head_dim), fp16, bf16, fp32 or fp64.
        key: Same shape and dtype.
        value: Same shape and dtype.
        local_kernel: Odd window size of step 1 in taps, ``(kh, kw)`` or an int for both.
        anchor_kernel: Odd number of anchors of step 2 along each axis.
        anchor_dilation: Distance between anchors in positions.
        scale: Factor on the logits of both steps, ``head_dim ** -0.5`` if None.
        rotary: ``(sin, cos)``, each (H, W, head_dim), floating point: rotates adjacent channel
            pairs of query and key, rounded to their dtype. The tables get no gradient. head_dim
            must be even.

    Returns:
        (B, H, W, num_heads, head_dim), dtype of ``query`` (of autocast, if enabled).

    Raises:
        ValueError: If shapes, dtypes or devices do not match, or a window is even or does not fit.
    """
    local_kernel = as_pair(local_kernel, 'local_kernel')
    anchor_kernel = as_pair(anchor_kernel, 'anchor_kernel')
    anchor_dilation = as_pair(anchor_dilation, 'anchor_dilation')
    shape = check_maps(query, key, value)
    check_window(shape, local_kernel, (1, 1))
    check_window(shape, anchor_kernel, anchor_dilation)
    sin, cos = (None, None) if rotary is None else rotary
    if rotary is not None:
        _check_rotary(*rotary, query)
    scale = shape[4] ** -0.5 if scale is None else scale
    if is_through_natten(query):
        windows = local_kernel, anchor_kernel, anchor_dilation
        return _step_by_step(query, key, value, rotary, *windows, scale)
    return _OPERATOR(
        query, key, value, sin, cos, local_kernel, anchor_kernel, anchor_dilation, scale
    )[0]


def _step_by_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotary: tuple[Tensor, Tensor] | None,
    local_kernel: tuple[int, int],
    anchor_kernel: tuple[int, int],
    anchor_dilation: tuple[int, int],
    scale: float,
) -> Tensor:
    """The operator as neighborhood attentions of their own, which NATTEN serves."""
    query, key, value = autocasted(query, key, value)
    if rotary is not None:
        query, key = (rotate_pairs(tensor, *rotary).to(tensor.dtype) for tensor in (query, key))
    has_local, has_anchor = _steps(local_kernel, anchor_kernel)
    if not has_local and not has_anchor:
        return _own(value, value.dtype)
    if has_local:
        value = neighborhood_attention(query, key, value, local_kernel, scale=scale)
    if has_anchor:
        window = anchor_kernel, anchor_dilation
        value = neighborhood_attention(query, key, value, *window, scale=scale)
    return value


def rotate_pairs(tensor: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Rotary embedding of adjacent channel pairs.

    ``x * cos + (-x[1], x[0], -x[3], x[2], ...) * sin``.

    Args:
        tensor: (B, H, W, num_heads, head_dim).
        sin: (H, W, head_dim).
        cos: (H, W, head_dim).

    Returns:
        Like ``tensor``, at least fp32.
    """
    compute = torch.promote_types(tensor.dtype, torch.float32)
    tensor, sin, cos = tensor.to(compute), sin.to(compute)[:, :, None], cos.to(compute)[:, :, None]
    swapped = torch.stack([-tensor[..., 1::2], tensor[..., ::2]], dim=-1).flatten(-2)
    return tensor * cos + swapped * sin


def sparse_scan_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sin: Tensor | None,
    cos: Tensor | None,
    local_kernel: tuple[int, int],
    anchor_kernel: tuple[int, int],
    anchor_dilation: tuple[int, int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator in PyTorch.

    Returns:
        Output and the result of step 1, both like ``query``; the log-sum-exp of the logits of both
        steps (B, H, W, num_heads, 2). What belongs to a skipped step is empty, the result of step 1
        too unless both steps run.
    """
    has_local, has_anchor = _steps(local_kernel, anchor_kernel)
    compute = torch.promote_types(query.dtype, torch.float32)
    inner = query.new_empty(0)
    local_logsumexp, anchor_logsumexp = (query.new_empty(0, dtype=compute) for _ in range(2))
    if not has_local and not has_anchor:
        return _own(value, value.dtype), inner, local_logsumexp, anchor_logsumexp
    query, key = _rotated(query, key, sin, cos)
    output = value
    if has_local:
        output, local_logsumexp = neighborhood_attention_reference(
            query, key, value, None, local_kernel, (1, 1), scale
        )
        output = output.to(value.dtype)
    if has_anchor:
        inner = output if has_local else inner
        output, anchor_logsumexp = neighborhood_attention_reference(
            query, key, output, None, anchor_kernel, anchor_dilation, scale
        )
    return output.to(value.dtype), inner, local_logsumexp, anchor_logsumexp


def sparse_scan_attention_backward_reference(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sin: Tensor | None,
    cos: Tensor | None,
    output: Tensor,
    inner: Tensor,
    local_logsumexp: Tensor,
    anchor_logsumexp: Tensor,
    local_kernel: tuple[int, int],
    anchor_kernel: tuple[int, int],
    anchor_dilation: tuple[int, int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in closed form: step 2 backward, then step 1, then the rotation.

    Returns:
        Gradients of query, key and value.
    """
    has_local, has_anchor = _steps(local_kernel, anchor_kernel)
    dtype = query.dtype
    query, key = _rotated(query, key, sin, cos)
    grad_query, grad_key, grad_value = torch.zeros_like(query), torch.zeros_like(key), grad_output
    if has_anchor:
        step_value = inner if has_local else value
        grad_query, grad_key, grad_value, _ = neighborhood_attention_backward_reference(
            grad_value,
            query,
            key,
            step_value,
            None,
            output,
            anchor_logsumexp,
            anchor_kernel,
            anchor_dilation,
            scale,
        )
    if has_local:
        step_output = inner if has_anchor else output
        grads = neighborhood_attention_backward_reference(
            grad_value,
            query,
            key,
            value,
            None,
            step_output,
            local_logsumexp,
            local_kernel,
            (1, 1),
            scale,
        )
        grad_query, grad_key, grad_value = grad_query + grads[0], grad_key + grads[1], grads[2]
    grad_query, grad_key = _rotated(grad_query, grad_key, _transposed(sin), cos)
    return _own(grad_query, dtype), _own(grad_key, dtype), _own(grad_value, dtype)


def _steps(local_kernel: Sequence[int], anchor_kernel: Sequence[int]) -> tuple[bool, bool]:
    """Which of the two steps run."""
    return tuple(local_kernel) != (1, 1), tuple(anchor_kernel) != (1, 1)


def _rotated(
    query: Tensor, key: Tensor, sin: Tensor | None, cos: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Both rotated, rounded to their dtype and held in at least fp32."""
    if sin is None or cos is None:
        return query, key
    query_, key_ = (rotate_pairs(tensor, sin, cos) for tensor in (query, key))
    return query_.to(query.dtype).to(query_.dtype), key_.to(key.dtype).to(key_.dtype)


def _transposed(sin: Tensor | None) -> Tensor | None:
    """The table that, with the same cosine, transposes the rotation: negative, pairs swapped."""
    return None if sin is None else -sin.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def _own(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy: an operator must not return its input."""
    return tensor.to(dtype).clone(memory_format=torch.contiguous_format)


def _check_rotary(sin: Tensor, cos: Tensor, query: Tensor) -> None:
    expected = (*query.shape[1:3], query.shape[4])
    for name, table in (('sin', sin), ('cos', cos)):
        if tuple(table.shape) != expected:
            raise ValueError(
                f'rotary {name} must have shape (H, W, head_dim) = {expected}, got '
                f'{tuple(table.shape)}'
            )
        if table.device != query.device or not table.is_floating_point():
            raise ValueError(
                f'rotary {name} must be floating point on {query.device}, got {table.dtype} on '
                f'{table.device}'
            )
        if table.requires_grad:
            raise ValueError(f'rotary {name} gets no gradient, pass {name}.detach()')
    if query.shape[4] % 2:
        raise ValueError(f'rotary needs an even head_dim, got {query.shape[4]}')


def _fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sin: Tensor | None,
    cos: Tensor | None,
    local_kernel: list[int],
    anchor_kernel: list[int],
    *_: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # An exported graph has no backward pass, which the rest serves, but perhaps unknown windows.
    both = (True, True)
    has_local, has_anchor = both if is_exporting() else _steps(local_kernel, anchor_kernel)
    compute = torch.promote_types(query.dtype, torch.float32)
    logsumexp = (*query.shape[:-1], 2)
    return (
        query.new_empty(query.shape),
        query.new_empty(query.shape if has_local and has_anchor else 0),
        query.new_empty(logsumexp if has_local else 0, dtype=compute),
        query.new_empty(logsumexp if has_anchor else 0, dtype=compute),
    )


register_operator(
    'sparse_scan_attention(Tensor query, Tensor key, Tensor value, Tensor? sin, Tensor? cos, '
    'SymInt[2] local_kernel, SymInt[2] anchor_kernel, SymInt[2] anchor_dilation, float scale) '
    '-> (Tensor output, Tensor inner, Tensor local_logsumexp, Tensor anchor_logsumexp)',
    reference=sparse_scan_attention_reference,
    backward_reference=sparse_scan_attention_backward_reference,
    fake=_fake,
    saved=('output', 'inner', 'local_logsumexp', 'anchor_logsumexp'),
    constants=('sin', 'cos'),
    multiply_adds=lambda backward, query, local_kernel, anchor_kernel, **_: multiply_adds(
        query, local_kernel, anchor_kernel, products=5 if backward else 2
    ),
)

_OPERATOR = torch.ops.mmlocalattn.sparse_scan_attention.default
