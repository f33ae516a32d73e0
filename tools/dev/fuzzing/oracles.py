"""The operators by their definitions: gathered windows, a softmax, autograd, in float64.

Nothing here comes from the package. tests/test_ops has the definitions as plain loops too, which
are too slow for maps of thousands of positions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Pair = tuple[int, int]


def neighborhood(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    kernel: Pair,
    dilation: Pair,
    scale: float,
) -> Tensor:
    """(B, H, W, n, d) of neighborhood attention."""
    axes = [
        _nearest(length, *window) for length, *window in zip(query.shape[1:3], kernel, dilation)
    ]
    logits = scale * torch.einsum('bhwnd,bhwijnd->bhwnij', query, _gather(key, *axes))
    if bias is not None:
        row, column = (
            (taps - torch.arange(len(taps))[:, None]) // step + size - 1
            for taps, step, size in zip(axes, dilation, kernel)
        )
        table = bias[:, row[:, None, :, None], column[None, :, None, :]]
        logits = logits + table.permute(1, 2, 0, 3, 4)
    return torch.einsum('bhwnij,bhwijnd->bhwnd', _softmax(logits), _gather(value, *axes))


def sparse_scan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotary: tuple[Tensor, Tensor] | None,
    local: Pair,
    anchor: Pair,
    dilation: Pair,
    scale: float,
) -> Tensor:
    """(B, H, W, n, d): a local window, then a grid of anchors."""
    if rotary is not None:
        query, key = _turn(query, *rotary), _turn(key, *rotary)
    inner = neighborhood(query, key, value, None, local, (1, 1), scale)
    return neighborhood(query, key, inner, None, anchor, dilation, scale)


def slide(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position_bias: Tensor | None,
    scale: float,
) -> Tensor:
    """(B, H, W, n, d) of attention to copies that a kernel (d, k * k, k, k) makes."""
    size = weight.shape[-1]
    (rows, columns), inside = _centred(query.shape[1:3], (size, size), 1)
    keys, values = (
        torch.einsum('bhwijnc,coij->bhwonc', _gather(x, rows, columns) * inside, weight)
        for x in (key, value)
    )
    if bias is not None:
        keys, values = keys + bias.T[:, None], values + bias.T[:, None]
    if position_bias is not None:
        keys = keys + position_bias.flatten(1).T[:, :, None]
    logits = scale * torch.einsum('bhwnc,bhwonc->bhwno', query, keys)
    return torch.einsum('bhwno,bhwonc->bhwnc', logits.softmax(-1), values)


def query_and_attend(
    scores: Tensor,
    values: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    kernel: Pair,
    stride: int,
) -> Tensor:
    """(B, H', W', n, d) of learned queries that gather around every stride-th position."""
    (rows, columns), inside = _centred(scores.shape[1:3], kernel, stride)
    logits = _gather(scores, rows, columns).permute(0, 1, 2, 5, 6, 3, 4)  # (B, h, w, q, n, i, j)
    if position_bias is not None:
        logits = logits + position_bias
    mask = inside[:, :, :, :, 0, 0].bool()[:, :, None, None]  # (h, w, 1, 1, i, j)
    weights = _softmax(logits.masked_fill(~mask, -torch.inf))
    if attention_scale is not None:
        weights = weights * attention_scale
    return torch.einsum('bhwqnij,bhwijnd->bhwnd', weights, _gather(values, rows, columns))


def stand_alone(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_embedding: Tensor,
    column_embedding: Tensor,
    kernel: Pair,
    padding: str,
    scale: float,
) -> Tensor:
    """(B, H, W, n, d) of a window with relative embeddings."""
    (rows, columns), inside = _centred(query.shape[1:3], kernel, 1)
    half = row_embedding.shape[-1]
    embedding = torch.cat(
        [
            row_embedding.transpose(0, 1)[:, None].expand(-1, kernel[1], -1, half),
            column_embedding.transpose(0, 1)[None].expand(kernel[0], -1, -1, -1),
        ],
        -1,
    )  # (i, j, n, d)
    keys, values = (_gather(x, rows, columns) * inside for x in (key, value))
    logits = scale * torch.einsum('bhwnd,bhwijnd->bhwnij', query, keys + embedding)
    if padding == 'mask':
        logits = logits.masked_fill(~inside[:, :, :, :, 0, 0].bool()[:, :, None], -torch.inf)
    return torch.einsum('bhwnij,bhwijnd->bhwnd', _softmax(logits), values)


def _nearest(length: int, kernel: int, dilation: int) -> Tensor:
    """(length, kernel): positions of the dilation group nearest to each, shifted inward."""
    windows = []
    for index in range(length):
        group = range(index % dilation, length, dilation)
        first = min(max(index // dilation - kernel // 2, 0), len(group) - kernel)
        windows.append(list(group)[first : first + kernel])
    return torch.tensor(windows)


def _centred(shape: Sequence[int], kernel: Pair, stride: int) -> tuple[list[Tensor], Tensor]:
    """Rows (h, i) and columns (w, j) of windows that end at no border, moved onto the map, and
    where they were on it, (h, w, i, j, 1, 1) of 1 and 0."""
    axes, inside = [], []
    for length, size in zip(shape, kernel):
        taps = torch.arange(0, length, stride)[:, None] + torch.arange(size) - size // 2
        axes.append(taps.clamp(0, length - 1))
        inside.append((taps >= 0) & (taps < length))
    both = inside[0][:, None, :, None] & inside[1][None, :, None, :]
    return axes, both[..., None, None].double()


def _gather(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, H, W, ...) to (B, h, w, i, j, ...)."""
    return x[:, rows[:, None, :, None], columns[None, :, None, :]]


def _softmax(logits: Tensor) -> Tensor:
    """Over the last two axes."""
    return logits.flatten(-2).softmax(-1).view(logits.shape)


def _turn(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Adjacent channels of (B, H, W, n, d) by the angles of (H, W, d)."""
    even, odd = x[..., ::2], x[..., 1::2]
    sin, cos = sin[:, :, None], cos[:, :, None]
    turned = (
        even * cos[..., ::2] - odd * sin[..., ::2],
        odd * cos[..., 1::2] + even * sin[..., 1::2],
    )
    return torch.stack(turned, -1).flatten(-2)
