"""Slide attention: every query attends to ``k * k`` shifted copies of keys and values.

Source: Slide-Transformer (arXiv 2304.04237). Copy i of a map is a depthwise convolution of it: a
fixed one-hot kernel that shifts it to tap i of a window, plus a learned kernel that deforms the
shift. Keys and values and all heads share these kernels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocalattn.ops._library import output_and_logsumexp, register_operator
from mmlocalattn.ops._softmax import log_sum_exp, softmax
from mmlocalattn.ops._window import check_maps, check_parameter
from mmlocalattn.ops.flops import slide_multiply_adds

KERNEL_SIZES = (3, 5, 7)


def slide_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    position_bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attend to shifted copies of keys and values.

    ``output(x) = sum_i softmax_i(scale * <query(x), key_i(x)>) value_i(x)`` with i over the
    ``k * k`` copies, and for channel c, with j over the ``k * k`` taps around x,

    ``key_i(x)[c] = sum_j weight[c, i, j] key(x + j)[c] + bias[c, i] + position_bias[head, i]``,
    ``value_i(x)[c] = sum_j weight[c, i, j] value(x + j)[c] + bias[c, i]``.

    Outside the map keys and values are 0; such taps take part in the softmax.

    Args:
        query: (B, H, W, num_heads, head_dim), fp16, bf16, fp32 or fp64.
        key: Same shape and dtype.
        value: Same shape and dtype.
        weight: The whole kernel of every copy, shift and learned path summed: (head_dim, k * k, k,
            k) with k = 3, 5 or 7. Its dtype, and that of the biases, is that of ``query``, or fp32
            beside a 16 bit ``query`` (and under autocast): rounding would blur the shift.
        bias: Of the copies of keys and values (head_dim, k * k).
        position_bias: Of the copies of keys, for all channels of a head (num_heads, k, k).
        scale: Factor on the logits, ``head_dim ** -0.5`` if None.

    Returns:
        (B, H, W, num_heads, head_dim), dtype of ``query`` (of autocast, if enabled).

    Raises:
        ValueError: If shapes, dtypes or devices do not match, or k is not 3, 5 or 7.
    """
    shape = check_maps(query, key, value)
    _check_parameters(query, shape, weight, bias, position_bias)
    scale = shape[4] ** -0.5 if scale is None else scale
    return _OPERATOR(query, key, value, weight, bias, position_bias, scale)[0]


def shift_kernel(head_dim: int, kernel_size: int, **factory: Any) -> Tensor:
    """The fixed path: the kernel of copy i is 1 at tap i and 0 elsewhere.

    Args:
        head_dim: Channels of a head.
        kernel_size: Side of the window k: 3, 5 or 7.
        factory: ``dtype`` and ``device`` of the result.

    Returns:
        (head_dim, k * k, k, k)

    Raises:
        ValueError: If k is not 3, 5 or 7.
    """
    _check_kernel_size(kernel_size)
    taps = kernel_size**2
    one_hot = torch.zeros(taps, taps, **factory)
    one_hot.fill_diagonal_(1)
    return one_hot.view(taps, kernel_size, kernel_size).repeat(head_dim, 1, 1, 1)


def slide_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The operator in PyTorch. Holds the logits, and one tap of the keys at a time.

    Returns:
        Output like ``query``, and the `log_sum_exp` of the logits (B, H, W, num_heads, 2), at
        least fp32.
    """
    compute = torch.promote_types(query.dtype, torch.float32)
    logits = _products(query.to(compute), key, weight, bias)
    logits = scale * (logits + _position_products(query.to(compute), position_bias))
    logsumexp = log_sum_exp(logits)
    weights = softmax(logits, logsumexp)
    output = torch.zeros_like(query, dtype=compute)
    for values, mix in zip(_taps(value, weight), _mixes(weight, compute)):
        output = output + values * (weights @ mix.t())
    if bias is not None:
        output = output + weights @ bias.to(compute).t()
    return output.to(query.dtype), logsumexp


def slide_attention_backward_reference(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position_bias: Tensor | None,
    logsumexp: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients in closed form.

    With ``dS_i = scale * P_i * (dP_i - sum_l P_l dP_l / sum_l P_l)``, ``dP_i = <dO, value_i>`` and,
    for channel c and tap j,
    ``A_j = sum_i dS_i weight[c, i, j]``, ``B_j = sum_i P_i weight[c, i, j]``:
    ``dQ(x) = sum_j A_j(x) K(x + j) + sum_i dS_i (bias + position_bias)``,
    ``dK(x + j) += A_j(x) Q(x)``, ``dV(x + j) += B_j(x) dO(x)``,
    ``dweight[c, i, j] = sum_x dS_i Q K(x + j) + P_i dO V(x + j)``, likewise the biases.

    Returns:
        Gradients of query, key, value, weight, bias and position_bias, each in the dtype of its
        tensor; that of a missing bias is empty.
    """
    compute = logsumexp.dtype
    query_, grad_output = query.to(compute), grad_output.to(compute)
    logits = _products(query_, key, weight, bias) + _position_products(query_, position_bias)
    weights = softmax(scale * logits, logsumexp)
    grad_weights = _products(grad_output, value, weight, bias)
    delta = (weights * grad_weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
    grad_logits = scale * weights * (grad_weights - delta)

    grad_keys, grad_values = (_taps(torch.zeros_like(query_), weight) for _ in range(2))
    grad_query, grad_mixes = torch.zeros_like(query_), []
    taps = (_taps(key, weight), _taps(value, weight), grad_keys, grad_values)
    for mix, keys, values, grad_keys_j, grad_values_j in zip(_mixes(weight, compute), *taps):
        mixed = grad_logits @ mix.t()
        grad_query += mixed * keys
        grad_keys_j += mixed * query_
        grad_values_j += (weights @ mix.t()) * grad_output
        grad_mixes.append(
            _outer_sum(query_ * keys, grad_logits) + _outer_sum(grad_output * values, weights)
        )
    grad_bias, grad_position_bias = query.new_empty(0), query.new_empty(0)
    if bias is not None:
        grad_query += grad_logits @ bias.to(compute).t()
        grad_bias = _outer_sum(query_, grad_logits) + _outer_sum(grad_output, weights)
        grad_bias = grad_bias.to(bias.dtype)
    if position_bias is not None:
        table = position_bias.to(compute).flatten(1)  # (num_heads, k * k)
        grad_query += (grad_logits * table).sum(-1, keepdim=True)
        grad_table = (grad_logits * query_.sum(-1, keepdim=True)).sum((0, 1, 2))
        grad_position_bias = grad_table.view_as(position_bias).to(position_bias.dtype)
    grad_key, grad_value = (taps[len(taps) // 2] for taps in (grad_keys, grad_values))
    return (
        grad_query.to(query.dtype),
        grad_key.to(key.dtype),
        grad_value.to(value.dtype),
        torch.stack(grad_mixes, -1).view_as(weight).to(weight.dtype),
        grad_bias,
        grad_position_bias,
    )


def _taps(tensor: Tensor, weight: Tensor) -> list[Tensor]:
    """Views of a map, zero-padded: tap j of every position. That in the middle is the map."""
    height, width = tensor.shape[1:3]
    kernel_size = weight.shape[-1]
    radius = kernel_size // 2
    padded = F.pad(tensor, (0, 0, 0, 0, *[radius] * 4))
    return [
        padded[:, row : row + height, column : column + width]
        for row in range(kernel_size)
        for column in range(kernel_size)
    ]


def _mixes(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(head_dim, k * k) per tap: its part in every copy."""
    return weight.to(dtype).flatten(2).unbind(-1)


def _products(queries: Tensor, keys: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``<queries, copy i of keys>``, without position bias: (B, H, W, num_heads, k * k)."""
    products = torch.zeros_like(queries[..., 0]).unsqueeze(-1)
    if bias is not None:
        products = queries @ bias.to(queries.dtype)
    for tap, mix in zip(_taps(keys, weight), _mixes(weight, queries.dtype)):
        products = products + (queries * tap) @ mix
    return products


def _position_products(query: Tensor, position_bias: Tensor | None) -> Tensor | float:
    """What position bias adds to `_products`."""
    if position_bias is None:
        return 0.0
    return query.sum(-1, keepdim=True) * position_bias.to(query.dtype).flatten(1)


def _outer_sum(channels: Tensor, copies: Tensor) -> Tensor:
    """Sum of outer products over positions and heads: (head_dim, k * k).

    Row by row, so that it does not depend on the number of threads.
    """
    channels, copies = (tensor.flatten(2, 3).flatten(0, 1) for tensor in (channels, copies))
    return (channels.mT @ copies).sum(0)


def _check_kernel_size(kernel_size: int) -> None:
    if kernel_size not in KERNEL_SIZES:
        raise ValueError(f'the kernel size must be one of {KERNEL_SIZES}, got {kernel_size}')


def _check_parameters(
    query: Tensor,
    shape: torch.Size,
    weight: Tensor,
    bias: Tensor | None,
    position_bias: Tensor | None,
) -> None:
    sizes, heads, head_dim = weight.shape, shape[3], shape[4]
    if len(sizes) != 4:
        raise ValueError(f'weight must have shape (head_dim, k * k, k, k), got {tuple(sizes)}')
    kernel_size = sizes[3]
    _check_kernel_size(kernel_size)
    taps = kernel_size**2
    expected: tuple[int, ...] = head_dim, taps, kernel_size, kernel_size
    check_parameter('weight', weight, '(head_dim, k * k, k, k)', expected, query)
    if bias is not None:
        check_parameter('bias', bias, '(head_dim, k * k)', (head_dim, taps), query)
    if position_bias is not None:
        expected = heads, kernel_size, kernel_size
        check_parameter('position_bias', position_bias, '(num_heads, k, k)', expected, query)


register_operator(
    'slide_attention(Tensor query, Tensor key, Tensor value, Tensor weight, Tensor? bias, '
    'Tensor? position_bias, float scale) -> (Tensor output, Tensor logsumexp)',
    reference=slide_attention_reference,
    backward_reference=slide_attention_backward_reference,
    fake=output_and_logsumexp,
    saved=('logsumexp',),
    parameters=('weight', 'bias', 'position_bias'),
    multiply_adds=lambda backward, query, weight, **_: slide_multiply_adds(
        query, weight, products=5 if backward else 2, convolutions=6 if backward else 2
    ),
)

_OPERATOR = torch.ops.mmlocalattn.slide_attention.default
