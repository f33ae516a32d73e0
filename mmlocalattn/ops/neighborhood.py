"""Neighborhood attention: every query attends to the ``kh * kw`` positions around it.

Source: Neighborhood Attention Transformer (arXiv 2204.07143) and its dilated form (arXiv
2209.15001), with the border rule of NATTEN: the window is shifted inward inside each dilation
group, so it never loses a key.
"""

import torch
from torch import Tensor

from mmlocalattn.ops._implementation import is_through_natten
from mmlocalattn.ops._library import (
    is_autocasting,
    output_and_logsumexp,
    register_operator,
)
from mmlocalattn.ops._softmax import log_sum_exp, softmax
from mmlocalattn.ops._window import (
    IntPair,
    as_pair,
    check_maps,
    check_window,
    window_indices,
)
from mmlocalattn.ops.flops import multiply_adds


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: IntPair,
    dilation: IntPair = 1,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attend to the neighborhood of every position of a map.

    ``output[i] = sum_j softmax_j(scale * <query[i], key[j]> + bias[j - i]) value[j]`` with j over
    the ``kh * kw`` positions of the dilated window around i, shifted inward at the border.

    Infinite or NaN ``value`` reaches the queries whose windows hold it; on CUDA, as in
    FlashAttention, also some near them, where it is multiplied by a weight of zero.

    Args:
        query: (B, H, W, num_heads, head_dim), fp16, bf16, fp32 or fp64.
        key: Same shape and dtype.
        value: Same shape and dtype.
        kernel_size: Odd window size in taps, ``(kh, kw)`` or an int for both.
        dilation: Distance between taps in positions; ``kernel_size * dilation`` must fit the map.
        bias: Relative position bias (num_heads, 2 * kh - 1, 2 * kw - 1), dtype of ``query``. Entry
            ``[:, kh - 1, kw - 1]`` belongs to the query's own position.
        scale: Factor on the logits, ``head_dim ** -0.5`` if None.

    Returns:
        (B, H, W, num_heads, head_dim), dtype of ``query`` (of autocast, if enabled).

    Raises:
        ValueError: If shapes, dtypes or devices do not match, or the window is even or does not
            fit.
    """
    kernel_size, dilation = as_pair(kernel_size, 'kernel_size'), as_pair(dilation, 'dilation')
    shape = check_maps(query, key, value)
    check_window(shape, kernel_size, dilation)
    if bias is not None:
        _check_bias(bias, query, kernel_size)
    scale = shape[4] ** -0.5 if scale is None else scale
    if is_through_natten(query):
        from mmlocalattn.ops import through_natten

        arguments = query, key, value, bias, kernel_size, dilation, scale
        output = through_natten.neighborhood_attention(*arguments)
        if output is not None:
            return output
    return _OPERATOR(query, key, value, bias, kernel_size, dilation, scale)[0]


def neighborhood_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    kernel_size: tuple[int, int],
    dilation: tuple[int, int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The operator in PyTorch. Holds the logits, and one row of taps of the keys at a time.

    Returns:
        Output like ``query``, and the `log_sum_exp` of the logits (B, H, W, num_heads, 2), at
        least fp32.
    """
    rows, cols = _taps(query, kernel_size, dilation)
    logits = _logits(query, key, bias, rows, cols, dilation, scale)
    logsumexp = log_sum_exp(logits.flatten(4))
    weights = softmax(logits.flatten(4), logsumexp).view_as(logits)
    output = torch.zeros_like(query, dtype=logits.dtype)
    for a in range(kernel_size[0]):
        taps = _gather(value, rows[:, a], cols).to(logits.dtype)
        output = output + torch.einsum('bhwnk,bhwknd->bhwnd', weights[..., a, :], taps)
    return output.to(query.dtype), logsumexp


def neighborhood_attention_backward_reference(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    output: Tensor,
    logsumexp: Tensor,
    kernel_size: tuple[int, int],
    dilation: tuple[int, int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients in closed form.

    ``dS = P * (dO V^T - <dO, O>)``, ``dQ = dS K``, ``dK = dS^T Q``, ``dV = P^T dO``.

    Returns:
        Gradients of query, key, value and bias; that of a missing bias is empty.
    """
    rows, cols = _taps(query, kernel_size, dilation)
    logits = _logits(query, key, bias, rows, cols, dilation, scale)
    weights = softmax(logits.flatten(4), logsumexp).view_as(logits)
    query_, grad_output, output = (
        tensor.to(weights.dtype) for tensor in (query, grad_output, output)
    )
    delta = (grad_output * output).sum(-1)[..., None]
    grad_query, grad_key, grad_value = (torch.zeros_like(query_) for _ in range(3))
    grad_logits = torch.empty_like(weights)
    for a in range(kernel_size[0]):
        keys, values = (
            _gather(tensor, rows[:, a], cols).to(weights.dtype) for tensor in (key, value)
        )
        grad_weights = torch.einsum('bhwnd,bhwknd->bhwnk', grad_output, values)
        grad_logits[..., a, :] = weights[..., a, :] * (grad_weights - delta)
        grad_taps = grad_logits[..., a, :] * scale
        grad_query += torch.einsum('bhwnk,bhwknd->bhwnd', grad_taps, keys)
        _scatter_add(
            grad_key, torch.einsum('bhwnk,bhwnd->bhwknd', grad_taps, query_), rows[:, a], cols
        )
        _scatter_add(
            grad_value,
            torch.einsum('bhwnk,bhwnd->bhwknd', weights[..., a, :], grad_output),
            rows[:, a],
            cols,
        )
    grad_bias = (
        query.new_empty(0) if bias is None else _grad_bias(grad_logits, bias, rows, cols, dilation)
    )
    return (
        grad_query.to(query.dtype),
        grad_key.to(key.dtype),
        grad_value.to(value.dtype),
        grad_bias.to(query.dtype),
    )


def _taps(
    query: Tensor, kernel_size: tuple[int, int], dilation: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Row (H, kh) and column (W, kw) indices that each query position sees."""
    height, width = query.shape[1:3]
    return (
        window_indices(height, kernel_size[0], dilation[0], query.device),
        window_indices(width, kernel_size[1], dilation[1], query.device),
    )


def _gather(tensor: Tensor, row: Tensor, cols: Tensor) -> Tensor:
    """One row of taps: (B, H, W, n, d), (H,), (W, kw) -> (B, H, W, kw, n, d)."""
    return tensor[:, row][:, :, cols]


def _scatter_add(target: Tensor, taps: Tensor, row: Tensor, cols: Tensor) -> None:
    """Add taps (B, H, W, kw, n, d) to where `_gather` took them from, (B, H, W, n, d)."""
    columns = torch.zeros_like(target).index_add_(2, cols.flatten(), taps.flatten(2, 3))
    target.index_add_(1, row, columns)


def _bias_index(rows: Tensor, cols: Tensor, dilation: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows (H, 1, kh, 1) and columns (W, 1, kw) of the bias table that each tap uses."""
    row, col = (
        (taps - torch.arange(taps.shape[0], device=taps.device)[:, None]) // step
        + taps.shape[1]
        - 1
        for taps, step in zip((rows, cols), dilation)
    )
    return row[:, None, :, None], col[:, None, :]


def _logits(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    cols: Tensor,
    dilation: tuple[int, int],
    scale: float,
) -> Tensor:
    """(B, H, W, num_heads, kh, kw), at least fp32."""
    compute = torch.promote_types(query.dtype, torch.float32)
    query = query.to(compute) * scale
    logits = torch.stack(
        [
            torch.einsum('bhwnd,bhwknd->bhwnk', query, _gather(key, rows[:, a], cols).to(compute))
            for a in range(rows.shape[1])
        ],
        dim=-2,
    )
    if bias is not None:
        row, col = _bias_index(rows, cols, dilation)
        logits = logits + bias.to(compute)[:, row, col].permute(1, 2, 0, 3, 4)  # (H, W, n, kh, kw)
    return logits


def _grad_bias(
    grad_logits: Tensor, bias: Tensor, rows: Tensor, cols: Tensor, dilation: tuple[int, int]
) -> Tensor:
    row, col = _bias_index(rows, cols, dilation)
    index = (row * bias.shape[2] + col).flatten()  # (H * W * kh * kw)
    grad = grad_logits.sum(0).permute(2, 0, 1, 3, 4).flatten(1)  # (n, H * W * kh * kw)
    return (
        grad.new_zeros(bias.shape[0], bias[0].numel()).index_add_(1, index, grad).view(bias.shape)
    )


def _check_bias(bias: Tensor, query: Tensor, kernel_size: tuple[int, int]) -> None:
    expected = (query.shape[3], 2 * kernel_size[0] - 1, 2 * kernel_size[1] - 1)
    if tuple(bias.shape) != expected:
        raise ValueError(
            f'bias must have shape (num_heads, 2 * kh - 1, 2 * kw - 1) = {expected}, got '
            f'{tuple(bias.shape)}'
        )
    if bias.device != query.device:
        raise ValueError(
            f'bias must be on the device of query, got {bias.device=}, {query.device=}'
        )
    if bias.dtype != query.dtype and not is_autocasting(query):
        raise ValueError(f'bias must have the dtype of query, got {bias.dtype=}, {query.dtype=}')


register_operator(
    'neighborhood_attention(Tensor query, Tensor key, Tensor value, Tensor? bias, '
    'SymInt[2] kernel_size, SymInt[2] dilation, float scale) -> (Tensor output, Tensor logsumexp)',
    reference=neighborhood_attention_reference,
    backward_reference=neighborhood_attention_backward_reference,
    fake=output_and_logsumexp,
    saved=('output', 'logsumexp'),
    multiply_adds=lambda backward, query, kernel_size, **_: multiply_adds(
        query, kernel_size, products=5 if backward else 2
    ),
)

_OPERATOR = torch.ops.mmlocalattn.neighborhood_attention.default
