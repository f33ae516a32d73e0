"""Windows that fit any map."""


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
