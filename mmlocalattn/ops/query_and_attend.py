"""Query and attend (QnA): learned queries, shared by all windows, attend to every window of a map.

Source: Learned Queries for Efficient Local Attention (arXiv 2112.11435); ``FusedKQnA`` in the
released ``layers/qna.py``. That exponentiates the scores as they are and overflows; here the
softmax is exact for every magnitude.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocalattn.ops._library import is_autocasting, register_operator
from mmlocalattn.ops._softmax import log_sum_exp, softmax
from mmlocalattn.ops._window import IntPair, as_pair, check_kind, is_odd_window
from mmlocalattn.ops.flops import value_multiply_adds

MAX_KERNEL = 13
"""Largest window along an axis."""


def query_and_attend(
    scores: Tensor,
    values: Tensor,
    position_bias: Tensor | None = None,
    attention_scale: Tensor | None = None,
    kernel_size: IntPair = 3,
    stride: int = 1,
) -> Tensor:
    """Sum what learned queries gather from the window around every ``stride``-th position.

    ``output[i] = sum_q sum_j attention_scale[q, j] * softmax_j(scores[i + j, q] +
    position_bias[q, j]) * values[i + j]`` with j over the ``kh * kw`` positions of the window.
    Positions outside the map take no part in the softmax. A query's score at a position is its
    product with the key there, one number for all windows.

    Windows are centred on positions 0, ``stride``, 2 ``stride``, ... of an axis, as those of a
    convolution with ``kernel_size // 2`` padding on both sides.

    Args:
        scores: (B, H, W, num_queries, num_heads), fp16, bf16, fp32 or fp64, of any strides.
        values: (B, H, W, num_heads, head_dim), dtype of ``scores``, of any strides: expanded
            heads are not copied.
        position_bias: Added to the scores, (num_queries, num_heads, kh, kw), in the dtype of
            ``values``, fp32 or fp64; none if None. Keeps its dtype under autocast.
        attention_scale: Factor on the weights after the softmax, of any sign, like
            ``position_bias``; 1 if None.
        kernel_size: Odd window size in positions, at most 13, ``(kh, kw)`` or an int for both.
        stride: Distance between windows in positions, 1 or 2.

    Returns:
        (B, ceil(H / stride), ceil(W / stride), num_heads, head_dim), dtype of ``values`` (of
        autocast, if enabled).

    Raises:
        ValueError: If shapes, dtypes or devices do not match, there is no query or no channel, the
            window is even or larger than 13, or the stride is another.
    """
    kernel_size = as_pair(kernel_size, 'kernel_size')
    _check_maps(scores, values)
    _check_windows(kernel_size, stride)
    if position_bias is not None:
        _check_table('position_bias', position_bias, scores, kernel_size)
    if attention_scale is not None:
        _check_table('attention_scale', attention_scale, scores, kernel_size)
    return _OPERATOR(scores, values, position_bias, attention_scale, kernel_size, stride)[0]


def query_and_attend_reference(
    scores: Tensor,
    values: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    kernel_size: tuple[int, int],
    stride: int,
) -> tuple[Tensor, Tensor]:
    """The operator in PyTorch. Holds the weights, and one row of taps of the values at a time.

    Returns:
        Output (B, H', W', num_heads, head_dim), and the `log_sum_exp` of the biased scores of every
        window (B, H', W', num_queries, num_heads, 2), at least fp32.
    """
    logits = _logits(scores, position_bias, kernel_size, stride)
    logsumexp = log_sum_exp(logits.flatten(5))
    weights = softmax(logits.flatten(5), logsumexp).view_as(logits)
    combined = _scaled(weights, attention_scale).sum(3)  # (B, H', W', n, kh, kw)
    windows = _windows(values.to(weights.dtype), kernel_size, stride, 0)
    output = weights.new_zeros(*weights.shape[:3], *values.shape[3:])
    for a in range(kernel_size[0]):
        taps = torch.einsum('byxnk,byxndk->byxnd', combined[..., a, :], windows[..., a, :])
        output = output + taps
    return output.to(values.dtype), logsumexp


def query_and_attend_backward_reference(
    grad_output: Tensor,
    scores: Tensor,
    values: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    logsumexp: Tensor,
    kernel_size: tuple[int, int],
    stride: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients in closed form.

    With ``G_j = <dO, V_j>`` and ``c_j = sum_q A_qj P_qj``: ``dV_j = c_j dO``, ``dA_qj = P_qj G_j``
    and ``dS_qj = P_qj (A_qj G_j - sum_j P_qj A_qj G_j / sum_j P_qj)``, summed over the windows of a
    position, or over all windows for the tables. The quotient does not see the rounding of ``P``.

    Returns:
        Gradients of scores, values, position_bias and attention_scale; that of a missing table is
        empty.
    """
    logits = _logits(scores, position_bias, kernel_size, stride)
    weights = softmax(logits.flatten(5), logsumexp).view_as(logits)
    grad_output = grad_output.to(weights.dtype)
    windows = _windows(values.to(weights.dtype), kernel_size, stride, 0)
    products = torch.stack(  # (B, H', W', n, kh, kw)
        [
            torch.einsum('byxnd,byxndk->byxnk', grad_output, windows[..., a, :])
            for a in range(kernel_size[0])
        ],
        dim=-2,
    )
    grad_scale = weights * products[:, :, :, None]
    grad_weights = _scaled(grad_scale, attention_scale)  # times the weights
    delta = grad_weights.sum((-2, -1), keepdim=True) / weights.sum((-2, -1), keepdim=True)
    grad_logits = grad_weights - weights * delta
    combined = _scaled(weights, attention_scale).sum(3)
    return (
        _sum_windows(grad_logits, None, scores, stride),
        _sum_windows(combined, grad_output, values, stride),
        _grad_table(grad_logits, position_bias, values),
        _grad_table(grad_scale, attention_scale, values),
    )


def window_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Positions by which windows reach over the beginning and the end of an axis."""
    before, last = kernel // 2, (length - 1) // stride * stride
    return before, max(last + kernel - before - length, 0)


def _windows(tensor: Tensor, kernel_size: tuple[int, int], stride: int, outside: float) -> Tensor:
    """Every window as a view: (B, H, W, m, n) -> (B, H', W', m, n, kh, kw)."""
    (top, bottom), (left, right) = (
        window_padding(length, kernel, stride)
        for length, kernel in zip(tensor.shape[1:3], kernel_size)
    )
    padded = F.pad(tensor, (0, 0, 0, 0, left, right, top, bottom), value=outside)
    return padded.unfold(1, kernel_size[0], stride).unfold(2, kernel_size[1], stride)


def _sum_windows(taps: Tensor, vectors: Tensor | None, like: Tensor, stride: int) -> Tensor:
    """The way back: adds what the windows give to each position of ``like``.

    Args:
        taps: (B, H', W', m, n, kh, kw); with ``vectors`` (B, H', W', m, kh, kw).
        vectors: Factor (B, H', W', m, n) on all taps of a window.
        like: (B, H, W, m, n).
        stride: Distance between windows.
    """
    rows, cols = ((n - 1) * stride + 1 for n in taps.shape[1:3])
    (top, bottom), (left, right) = (
        window_padding(length, kernel, stride)
        for length, kernel in zip(like.shape[1:3], taps.shape[-2:])
    )
    batch, height, width = like.shape[:3]
    padded = taps.new_zeros(batch, top + height + bottom, left + width + right, *like.shape[3:])
    for a in range(taps.shape[-2]):
        for b in range(taps.shape[-1]):
            tap = taps[..., a, b] if vectors is None else taps[..., a, b, None] * vectors
            padded[:, a : a + rows : stride, b : b + cols : stride] += tap
    return padded[:, top : top + height, left : left + width].to(like.dtype, copy=True)


def _logits(
    scores: Tensor, position_bias: Tensor | None, kernel_size: tuple[int, int], stride: int
) -> Tensor:
    """(B, H', W', num_queries, num_heads, kh, kw), at least fp32, -inf outside the map."""
    compute = torch.promote_types(scores.dtype, torch.float32)
    logits = _windows(scores.to(compute), kernel_size, stride, float('-inf'))
    return logits if position_bias is None else logits + position_bias.to(compute)


def _scaled(weights: Tensor, attention_scale: Tensor | None) -> Tensor:
    return weights if attention_scale is None else weights * attention_scale.to(weights.dtype)


def _grad_table(grad: Tensor, table: Tensor | None, values: Tensor) -> Tensor:
    """The sum over all windows (B, H', W', num_queries, num_heads, kh, kw)."""
    return values.new_empty(0) if table is None else grad.sum((0, 1, 2)).to(table.dtype)


def _check_maps(scores: Tensor, values: Tensor) -> None:
    problem, score_shape, shape = '', scores.shape, values.shape
    if len(score_shape) != 5 or len(shape) != 5:
        problem = (
            'scores must have shape (B, H, W, num_queries, num_heads) and values '
            '(B, H, W, num_heads, head_dim)'
        )
    else:
        batch, height, width, heads, channels = shape
        score_batch, rows, columns, queries, score_heads = score_shape
        if (score_batch, rows, columns, score_heads) != (batch, height, width, heads):
            problem = 'scores and values must have one (B, H, W) and num_heads'
        elif height == 0 or width == 0:
            problem = 'the map must have a position'
        elif queries == 0 or channels == 0:
            problem = 'there must be a query and a channel'
    if problem:
        shapes = f'scores {tuple(score_shape)}, values {tuple(shape)}'
        raise ValueError(f'{problem}, got {shapes}')
    dtype = scores.dtype
    if values.dtype is not dtype or values.device != scores.device or not dtype.is_floating_point:
        check_kind(scores=scores, values=values)  # says what differs, if autocast does not cast it


def _check_windows(kernel_size: tuple[int, int], stride: int) -> None:
    if not is_odd_window(kernel_size, 1, MAX_KERNEL):
        raise ValueError(f'kernel_size must be odd and at most {MAX_KERNEL}, got {kernel_size=}')
    if stride not in (1, 2):
        raise ValueError(f'stride must be 1 or 2, got {stride=}')


def _check_table(name: str, table: Tensor, scores: Tensor, kernel_size: tuple[int, int]) -> None:
    expected = (*scores.shape[3:], *kernel_size)
    if tuple(table.shape) != expected:
        raise ValueError(
            f'{name} must have shape (num_queries, num_heads, kh, kw) = {expected}, got '
            f'{tuple(table.shape)}'
        )
    if table.device != scores.device:
        raise ValueError(f'{name} must be on {scores.device}, as scores, got {table.device}')
    allowed = {scores.dtype, torch.float32, torch.float64}
    if not table.is_floating_point() or (table.dtype not in allowed and not is_autocasting(scores)):
        raise ValueError(f'{name} must be fp32, fp64 or {scores.dtype}, got {table.dtype}')


def _fake(
    scores: Tensor,
    values: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    kernel_size: list[int],
    stride: int,
) -> tuple[Tensor, Tensor]:
    batch, height, width = values.shape[:3]
    # In an exported graph this is the formula that slices have.
    size = (batch, (height - 1) // stride + 1, (width - 1) // stride + 1)
    compute = torch.promote_types(values.dtype, torch.float32)
    return (
        values.new_empty((*size, *values.shape[3:])),
        scores.new_empty((*size, *scores.shape[3:], 2), dtype=compute),
    )


register_operator(
    'query_and_attend(Tensor scores, Tensor values, Tensor? position_bias, '
    'Tensor? attention_scale, int[2] kernel_size, int stride) '
    '-> (Tensor output, Tensor logsumexp)',
    reference=query_and_attend_reference,
    backward_reference=query_and_attend_backward_reference,
    fake=_fake,
    saved=('logsumexp',),
    parameters=('position_bias', 'attention_scale'),
    multiply_adds=lambda backward, values, kernel_size, stride, **_: value_multiply_adds(
        values, kernel_size, stride, products=2 if backward else 1
    ),
)

_OPERATOR = torch.ops.mmlocalattn.query_and_attend.default
