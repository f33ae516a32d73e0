"""Stand-alone self-attention (SASA): every query attends to the window centred on it.

Source: Stand-Alone Self-Attention in Vision Models (arXiv 1906.05909), equation 3, which has no
released code.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocalattn.ops._library import output_and_logsumexp, register_operator
from mmlocalattn.ops._softmax import log_sum_exp, softmax
from mmlocalattn.ops._window import (
    IntPair,
    as_pair,
    check_maps,
    check_parameter,
    is_odd_window,
)
from mmlocalattn.ops.flops import multiply_adds


def stand_alone_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_embedding: Tensor,
    column_embedding: Tensor,
    kernel_size: IntPair,
    padding: Literal['mask', 'zero'] = 'mask',
    scale: float = 1.0,
) -> Tensor:
    """Attend to the window centred on every position of a map, with relative embeddings.

    ``output[i] = sum_j softmax_j(scale * <query[i], key[j] + r[j - i]>) value[j]`` with j over the
    ``kh * kw`` positions around i, and r the row embedding of the offset in the first half of the
    channels and its column embedding in the rest. The paper has no scale, and does not say what
    the part of a window outside the map does.

    Args:
        query: (B, H, W, num_heads, head_dim), fp16, bf16, fp32 or fp64, of any strides. head_dim
            may be odd; on CUDA it is at most 256.
        key: Same shape and dtype.
        value: Same shape and dtype.
        row_embedding: (num_heads, kh, head_dim // 2), dtype of ``query`` or fp32 for a lower one,
            also under autocast. Entry ``[:, kh // 2]`` belongs to the query's own row.
        column_embedding: (num_heads, kw, head_dim - head_dim // 2), likewise.
        kernel_size: Odd window size in positions, 3 to 11, ``(kh, kw)`` or an int for both. It may
            exceed the map.
        padding: Positions outside the map take no part (``'mask'``), or take part with key and
            value 0, so that their logits are those of the embeddings (``'zero'``).
        scale: Factor on the logits, of any sign.

    Returns:
        (B, H, W, num_heads, head_dim), dtype of ``query`` (of autocast, if enabled).

    Raises:
        ValueError: If shapes, dtypes or devices do not match, the window is not odd and from 3 to
            11, or the padding is unknown.
        RuntimeError: If head_dim is more than 256 on CUDA.
    """
    kernel_size = as_pair(kernel_size, 'kernel_size')
    shape = check_maps(query, key, value)
    if not is_odd_window(kernel_size, 3, 11):
        raise ValueError(f'kernel_size must be odd and from 3 to 11, got {kernel_size=}')
    heads, head_dim = shape[3], shape[4]
    expected = heads, kernel_size[0], head_dim // 2
    meaning = '(num_heads, kh, head_dim // 2)'
    check_parameter('row_embedding', row_embedding, meaning, expected, query)
    expected = heads, kernel_size[1], head_dim - head_dim // 2
    meaning = '(num_heads, kw, head_dim - head_dim // 2)'
    check_parameter('column_embedding', column_embedding, meaning, expected, query)
    if padding not in ('mask', 'zero'):
        raise ValueError(f"padding must be 'mask' or 'zero', got {padding=}")
    zero_padding = padding == 'zero'
    return _OPERATOR(
        query, key, value, row_embedding, column_embedding, kernel_size, zero_padding, scale
    )[0]


def stand_alone_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_embedding: Tensor,
    column_embedding: Tensor,
    kernel_size: tuple[int, int],
    zero_padding: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The operator in PyTorch. Holds the logits, and one row of taps of the keys at a time.

    Returns:
        Output like ``query``, and the `log_sum_exp` of the logits (B, H, W, num_heads, 2), at
        least fp32.
    """
    compute = torch.promote_types(query.dtype, torch.float32)
    logits = _logits(query, key, row_embedding, column_embedding, kernel_size, zero_padding, scale)
    logsumexp = log_sum_exp(logits.flatten(4))
    weights = softmax(logits.flatten(4), logsumexp).view_as(logits)
    output = torch.zeros_like(query, dtype=compute)
    for a, values in enumerate(_tap_rows(value.to(compute), kernel_size)):
        output = output + torch.einsum('bhwnk,bhwndk->bhwnd', weights[..., a, :], values)
    return output.to(query.dtype), logsumexp


def stand_alone_attention_backward_reference(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_embedding: Tensor,
    column_embedding: Tensor,
    logsumexp: Tensor,
    kernel_size: tuple[int, int],
    zero_padding: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients in closed form.

    With ``dP = dO V^T``: ``dS = P * (dP - sum(P * dP) / sum(P))``, ``dQ = dS (K + R)``,
    ``dK = dS^T Q``, ``dV = P^T dO``; that of a row embedding sums ``dS Q`` over the taps of the row
    and all queries, likewise for columns. The quotient is ``<dO, O>`` without the rounding of ``O``
    and of the log-sum-exp, which peaked weights would show.

    Returns:
        Gradients of query, key, value and the embeddings of rows and of columns.
    """
    compute = torch.promote_types(query.dtype, torch.float32)
    logits = _logits(query, key, row_embedding, column_embedding, kernel_size, zero_padding, scale)
    weights = softmax(logits.flatten(4), logsumexp).view_as(logits)
    query_, key_, value_, grad_output, rows, columns = (
        tensor.to(compute)
        for tensor in (query, key, value, grad_output, row_embedding, column_embedding)
    )
    grad_weights = _tap_products(grad_output, value_, kernel_size)
    delta = (weights * grad_weights).sum((-1, -2), keepdim=True)
    delta /= weights.sum((-1, -2), keepdim=True)
    grad_logits = scale * weights * (grad_weights - delta)
    grad_query = torch.zeros_like(query_)
    for a, keys in enumerate(_tap_rows(key_, kernel_size)):
        grad_query += torch.einsum('bhwnk,bhwndk->bhwnd', grad_logits[..., a, :], keys)
    half = query.shape[4] // 2
    grad_rows, grad_columns = grad_logits.sum(-1), grad_logits.sum(-2)
    grad_query[..., :half] += torch.einsum('bhwnk,nkd->bhwnd', grad_rows, rows)
    grad_query[..., half:] += torch.einsum('bhwnk,nkd->bhwnd', grad_columns, columns)
    return (
        grad_query.to(query.dtype),
        _scatter(grad_logits, query_).to(key.dtype),
        _scatter(weights, grad_output).to(value.dtype),
        torch.einsum('bhwnk,bhwnd->nkd', grad_rows, query_[..., :half]).to(row_embedding.dtype),
        torch.einsum('bhwnk,bhwnd->nkd', grad_columns, query_[..., half:]).to(
            column_embedding.dtype
        ),
    )


def _padded(tensor: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """(B, H, W, n, d) -> (B, H + kh - 1, W + kw - 1, n, d) with zeros around the map."""
    rows, columns = (kernel // 2 for kernel in kernel_size)
    return F.pad(tensor, (0, 0, 0, 0, columns, columns, rows, rows))


def _tap_rows(tensor: Tensor, kernel_size: tuple[int, int]) -> list[Tensor]:
    """What each row of a window sees of a map (B, H, W, n, d): kh views (B, H, W, n, d, kw)."""
    padded, height = _padded(tensor, kernel_size), tensor.shape[1]
    return [padded[:, a : a + height].unfold(2, kernel_size[1], 1) for a in range(kernel_size[0])]


def _tap_products(query: Tensor, tensor: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Products of the queries with what their windows see of a map: (B, H, W, n, kh, kw)."""
    taps = _tap_rows(tensor, kernel_size)
    return torch.stack([torch.einsum('bhwnd,bhwndk->bhwnk', query, row) for row in taps], dim=-2)


def _scatter(weights: Tensor, tensor: Tensor) -> Tensor:
    """Sum of a map (B, H, W, n, d) over the queries that see each position, (B, H, W, n, d).

    Args:
        weights: (B, H, W, n, kh, kw) of the taps of each query.
        tensor: (B, H, W, n, d) of the queries.
    """
    height, width = tensor.shape[1:3]
    rows, columns = weights.shape[4:]
    target = torch.zeros_like(_padded(tensor, (rows, columns)))
    for a in range(rows):
        for b in range(columns):
            target[:, a : a + height, b : b + width] += weights[..., a, b, None] * tensor
    a, b = rows // 2, columns // 2
    return target[:, a : a + height, b : b + width].contiguous()


def _logits(
    query: Tensor,
    key: Tensor,
    row_embedding: Tensor,
    column_embedding: Tensor,
    kernel_size: tuple[int, int],
    zero_padding: bool,
    scale: float,
) -> Tensor:
    """(B, H, W, num_heads, kh, kw), at least fp32; -inf for masked taps."""
    compute = torch.promote_types(query.dtype, torch.float32)
    query, half = query.to(compute) * scale, query.shape[4] // 2
    logits = _tap_products(query, key.to(compute), kernel_size)
    rows, columns = row_embedding.to(compute), column_embedding.to(compute)
    logits = logits + torch.einsum('bhwnd,nkd->bhwnk', query[..., :half], rows)[..., None]
    logits = logits + torch.einsum('bhwnd,nkd->bhwnk', query[..., half:], columns)[..., None, :]
    if zero_padding:
        return logits
    rows, columns = (
        _is_inside(length, kernel, query.device)
        for length, kernel in zip(query.shape[1:3], kernel_size)
    )
    is_inside = rows[:, None, None, :, None] & columns[:, None, None, :]
    return logits.masked_fill(~is_inside, -torch.inf)


def _is_inside(length: int, kernel: int, device: torch.device) -> Tensor:
    """Whether the taps of every position along one axis are on the map, (length, kernel)."""
    taps = torch.arange(length, device=device)[:, None] + torch.arange(kernel, device=device)
    return (taps >= kernel // 2) & (taps < length + kernel // 2)


register_operator(
    'stand_alone_attention(Tensor query, Tensor key, Tensor value, Tensor row_embedding, '
    'Tensor column_embedding, int[2] kernel_size, bool zero_padding, float scale) '
    '-> (Tensor output, Tensor logsumexp)',
    reference=stand_alone_attention_reference,
    backward_reference=stand_alone_attention_backward_reference,
    fake=output_and_logsumexp,
    saved=('logsumexp',),
    parameters=('row_embedding', 'column_embedding'),
    multiply_adds=lambda backward, query, kernel_size, **_: multiply_adds(
        query, kernel_size, products=5 if backward else 2
    ),
)

_OPERATOR = torch.ops.mmlocalattn.stand_alone_attention.default
