"""Window index maths and argument checks shared by the operators. The twin of ``csrc/window.h``."""

import torch
from torch import Tensor

from mmlocalattn.ops._library import is_autocasting

IntPair = int | tuple[int, int]


def as_pair(value: IntPair, name: str) -> tuple[int, int]:
    """``value`` as ``(height, width)``; an int means both.

    Raises:
        ValueError: If ``value`` is neither an int nor a pair of ints.
    """
    if type(value) is int:
        return value, value
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value
    pair = (value, value) if isinstance(value, (int, Tensor)) else tuple(value)
    if torch.jit.is_tracing():  # sizes, and windows computed from them, are tensors then
        pair = tuple(map(int, pair))
    if len(pair) != 2 or not (isinstance(pair[0], int) and isinstance(pair[1], int)):
        raise ValueError(f'{name} must be an int or a (height, width) pair of ints, got {value!r}')
    return pair


def window_indices(length: int, kernel: int, dilation: int, device: torch.device) -> Tensor:
    """Indices along one axis that each query position sees.

    Position ``i`` belongs to dilation group ``i % dilation``; inside its group the window is
    centred on ``i`` and shifted inward at the ends, so that it always holds ``kernel`` positions.

    Returns:
        (length, kernel) int64.
    """
    index = torch.arange(length, device=device)
    cell = index // dilation
    group = index - cell * dilation
    last_start = (length - group + dilation - 1) // dilation - kernel
    start = torch.minimum((cell - kernel // 2).clamp(min=0), last_start)
    taps = torch.arange(kernel, device=device)
    return (start[:, None] + taps) * dilation + group[:, None]


def check_maps(query: Tensor, key: Tensor, value: Tensor) -> torch.Size:
    """`check_tensors` of the maps of attention, which it only calls to say where they disagree."""
    shape, dtype, device = query.shape, query.dtype, query.device
    if (
        len(shape) == 5
        and shape == key.shape == value.shape
        and dtype.is_floating_point
        and key.dtype is dtype is value.dtype
        and key.device == device == value.device
    ):
        return shape
    return check_tensors(query=query, key=key, value=value)


def check_tensors(**tensors: Tensor) -> torch.Size:
    """Check that 5-d attention tensors agree in shape, dtype and device, see `check_kind`.

    Returns:
        Their shape, (B, H, W, num_heads, head_dim).

    Raises:
        ValueError: If they do not agree, are not (B, H, W, num_heads, head_dim), or not floating
            point.
    """
    first, *others = tensors.values()
    shape = first.shape
    agree = len(shape) == 5
    for other in others:
        agree = agree and other.shape == shape
    if not agree:
        names = ', '.join(tensors)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if any(len(shape) != 5 for shape in shapes.values()):
            raise ValueError(
                f'{names} must have shape (B, H, W, num_heads, head_dim), got {shapes}'
            )
        raise ValueError(f'{names} must have one shape, got {shapes}')
    check_kind(**tensors)
    return shape


def check_kind(**tensors: Tensor) -> None:
    """Check that tensors agree in dtype and device, and are floating point.

    Under autocast the dtypes may differ, the operator casts them.

    Raises:
        ValueError: If they do not or are not.
    """
    first, *others = tensors.values()
    device, dtype = first.device, first.dtype
    agree = dtype.is_floating_point
    for other in others:
        agree = agree and other.dtype == dtype and other.device == device
    if agree:
        return
    names = ', '.join(tensors)
    if any(tensor.device != device for tensor in others):
        devices = {name: str(tensor.device) for name, tensor in tensors.items()}
        raise ValueError(f'{names} must be on one device, got {devices}')
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    if not all(tensor.is_floating_point() for tensor in tensors.values()):
        raise ValueError(f'{names} must be floating point, got {dtypes}')
    if not is_autocasting(first):
        raise ValueError(f'{names} must have one dtype, got {dtypes}')


def check_parameter(
    name: str, tensor: Tensor, meaning: str, expected: tuple[int, ...], query: Tensor
) -> None:
    """Check a parameter of an operator, which may stay in fp32 where ``query`` has a lower dtype.

    Raises:
        ValueError: If its shape is not ``expected``, which the message calls ``meaning``, or its
            device or dtype does not go with ``query``.
    """
    if tensor.shape != expected:
        raise ValueError(
            f'{name} must have shape {meaning} = {expected}, got {tuple(tensor.shape)}'
        )
    if tensor.dtype is query.dtype and tensor.device == query.device:
        return
    if tensor.device != query.device:
        raise ValueError(
            f'{name} must be on the device of query, got {tensor.device} and {query.device}'
        )
    dtypes = (query.dtype, torch.promote_types(query.dtype, torch.float32))
    if not tensor.is_floating_point() or (tensor.dtype not in dtypes and not is_autocasting(query)):
        raise ValueError(
            f'{name} must have the dtype of query, or float32 beside a 16 bit query, got '
            f'{tensor.dtype} and {query.dtype}'
        )


def is_odd_window(kernel_size: tuple[int, int], least: int, most: int) -> bool:
    """Whether both sides are odd and in a range, whose ends belong to it."""
    kh, kw = kernel_size
    return kh % 2 == 1 and kw % 2 == 1 and least <= kh <= most and least <= kw <= most


def check_window(
    shape: torch.Size, kernel_size: tuple[int, int], dilation: tuple[int, int]
) -> None:
    """Check that a window is odd and fits a map of the shape (B, H, W, num_heads, head_dim).

    Raises:
        ValueError: If it is even, not positive, or larger than the map.
    """
    (kh, kw), (dh, dw) = kernel_size, dilation
    if kh < 1 or kw < 1 or kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f'kernel_size must be odd and positive, got {kernel_size=}')
    if dh < 1 or dw < 1:
        raise ValueError(f'dilation must be at least 1, got {dilation=}')
    _, height, width, _, _ = shape
    if kh * dh > height or kw * dw > width:
        raise ValueError(
            f'kernel_size * dilation must not exceed the map, got {kernel_size=}, {dilation=} '
            f'for a map of {(height, width)}: shrink the kernel or the dilation'
        )
