"""Windows that fit any map."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mmlocalattn.layers.symbolic_size import is_symbolic, round_up
from mmlocalattn.ops._window import as_pair


def fit_window(
    size: tuple[int, int], kernel_size: tuple[int, int], dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shrink a window, on each axis alone, to the largest odd size that fits the map.

    Args:
        size: (H, W) of the map, at least 1.
        kernel_size: Odd (kh, kw).
        dilation: (dh, dw), at least 1.

    Returns:
        Kernel and dilation with ``kernel * dilation <= size`` on both axes; the given ones if
        they fit. An axis whose kernel becomes 1 gets dilation 1.
    """
    (kernel_h, dilation_h), (kernel_w, dilation_w) = map(_fit_axis, size, kernel_size, dilation)
    return (kernel_h, kernel_w), (dilation_h, dilation_w)


def fit_dilation(
    size: tuple[int, int], kernel_size: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    """Bring the taps of a window closer together, on each axis alone, until they fit the map.

    Args:
        size: (H, W) of the map, at least 1.
        kernel_size: Odd (kh, kw).
        dilation: (dh, dw), at least 1.

    Returns:
        The largest dilation up to the given one with ``kernel * dilation <= size``; 1 on an axis
        where even that is too much, so that :func:`fit_window` then shrinks the kernel.
    """
    rows, columns = (
        max(1, min(step, length // kernel))
        for length, kernel, step in zip(size, kernel_size, dilation)
    )
    return rows, columns


def _fit_axis(length: int, kernel: int, dilation: int) -> tuple[int, int]:
    # No branches: in an exported graph the length is a symbol.
    kernel = max(1, min(kernel, (length // dilation - 1) // 2 * 2 + 1))
    return kernel, min(dilation, 1 + (kernel - 1) * dilation)


WindowFunction = Callable[[Tensor, Tensor | None], Tensor]


def map_windows(
    function: WindowFunction,
    x: Tensor,
    window_size: tuple[int | None, int | None],
    shift: tuple[int, int] = (0, 0),
) -> Tensor:
    """Apply a function to every window of a grid that partitions a map.

    The grid has a corner at ``shift``, and the borders of the map cut windows. Attention inside
    the windows equals that of a map that is padded to whole windows (and rolled, with a shift)
    under a mask over all that does not belong together. But here windows of one size are handled
    together, in at most nine calls, and there is nothing to pad, roll or mask. Only a graph that
    serves maps of all sizes does so.

    Args:
        function: Maps (N, h, w, ...) windows to (N, h, w, C), with h <= height and w <= width. Its
            second argument tells which keys a query may attend to, (N, 1, h * w, h * w) bool, or
            is None for all. Padding is zero.
        x: (B, H, W, ...).
        window_size: (height, width). A side of the map that is not longer is one window, and None
            is one of any length.
        shift: (rows, columns), 0 <= shift < window_size.

    Returns:
        (B, H, W, C), contiguous.
    """
    height, width = x.shape[1:3]
    if is_symbolic(height, width):
        return _map_padded(function, x, window_size, shift)
    rows, columns = map(_strips, as_pair((height, width), 'size'), window_size, shift)
    bands = []
    for band, (height, _) in zip(x.split([h * n for h, n in rows], 1), rows):
        parts = band.split([w * n for w, n in columns], 2)
        windows = [
            _map_part(function, part, height, width) for part, (width, _) in zip(parts, columns)
        ]
        bands.append(torch.cat(windows, 2) if len(windows) > 1 else windows[0])
    return torch.cat(bands, 1) if len(bands) > 1 else bands[0]


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, mask: Tensor | None
) -> Tensor:
    """Attention inside windows, of a function for :func:`map_windows`.

    Args:
        query: (N, num_heads, h * w, head_dim).
        key: Same shape.
        value: Same shape.
        bias: Of the logits, (1, num_heads, h * w, h * w) or None.
        mask: As :func:`map_windows` gives it.

    Returns:
        Like ``query``.
    """
    if mask is None:
        bias = bias if bias is None else bias.to(query.dtype)  # under autocast, as torch 2.1 wants
        return F.scaled_dot_product_attention(query, key, value, bias)
    # Its check of the mask would be a condition on the number of windows in the exported graph.
    logits = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    logits = logits if bias is None else logits + bias
    return logits.masked_fill(~mask, -torch.inf).softmax(-1) @ value


def _strips(length: int, window: int | None, shift: int) -> list[tuple[int, int]]:
    """Cut a side of a map at ``shift`` and every ``window`` from there.

    Returns:
        Window sizes and how many of that size lie side by side.
    """
    if window is None or length <= window:
        return [(length, 1)]
    count, rest = (length - shift) // window, (length - shift) % window
    return [strip for strip in ((shift, 1), (window, count), (rest, 1)) if all(strip)]


def _map_part(function: WindowFunction, x: Tensor, height: int, width: int) -> Tensor:
    """``map_windows`` for a map (B, H, W, ...) of whole windows."""
    grid = x.unflatten(1, (-1, height)).unflatten(3, (-1, width)).transpose(2, 3)
    windows = function(grid.flatten(0, 2), None)  # (B * rows * columns, height, width, C)
    return windows.unflatten(0, grid.shape[:3]).transpose(2, 3).reshape(*x.shape[:3], -1)


def _map_padded(
    function: WindowFunction,
    x: Tensor,
    window_size: tuple[int | None, int | None],
    shift: tuple[int, int],
) -> Tensor:
    """``map_windows`` in one call for maps of any size.

    Windows are gathered: whether they could be a view would depend on their number.
    """
    (rows, same_row, row), (columns, same_column, column) = (
        _roll(length, window, step, x.device)
        for length, window, step in zip(x.shape[1:3], window_size, shift)
    )
    below, right = rows.numel() - x.shape[1], columns.numel() - x.shape[2]
    x = F.pad(x, (0, 0) * (x.dim() - 3) + (0, right, 0, below))
    grid = x[:, rows[:, None, :, None], columns[:, None]]  # (B, rows, columns, height, width, ...)
    mask = same_row[:, None, :, None, :, None] & same_column[:, None, :, None]
    mask = mask.flatten(4).flatten(2, 3).flatten(0, 1)  # (rows * columns, h * w, h * w)
    windows = function(grid.flatten(0, 2), mask.repeat(x.shape[0], 1, 1).unsqueeze(1))
    windows = windows.unflatten(0, grid.shape[:3])
    row, column = row[..., None], column[..., None, :]
    return windows[:, row[0], column[0], row[1], column[1]]


def _roll(
    length: int, window: int | None, shift: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Pad a side of a map to n whole windows, and roll it so that a window begins at ``shift``.

    Returns:
        The positions in each window (n, window), and which of them belong together, (n, window,
        window): the map, what rolled over from its begin, and padding do not. For each position
        of the map, its window and its place there (2, length).
    """
    if window is None:
        place = torch.arange(length, device=device)
        same = torch.ones(1, length, length, dtype=torch.bool, device=device)
        return place[None], same, torch.stack((torch.zeros_like(place), place))
    padded = round_up(length, window)
    shift = min(shift, (length - 1) // window * shift)  # one window is not shifted
    position = torch.arange(padded, device=device) + shift
    rolls = position >= padded
    position = position - rolls.long() * padded
    part = torch.where(position < length, rolls.long(), 2).view(-1, window)
    element = torch.arange(length, device=device) - shift
    element = torch.where(element < 0, element + padded, element)
    number = element // window
    return (
        position.view(-1, window),
        part[:, :, None] == part[:, None],
        torch.stack((number, element - number * window)),
    )
