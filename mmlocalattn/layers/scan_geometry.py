"""Where sparse scan attention looks: kernels and dilation as a function of the map.

Two rules, both pure functions of the map's size:

* :func:`adaptive_scan` is the released one (``ConvDecop.forward`` in SSViT's ``SSViT.py``):
  windows of 7 and a grid of ``side // 7`` anchors, so the number of keys grows with the map.
* :func:`spread_scan` keeps given kernels and spreads the anchors over the map (our choice): the
  number of keys stays, the gaps between the anchors grow.
"""

from typing import NamedTuple

from mmlocalattn.layers.window import fit_window

WINDOW = 7
"""Window of the released models, in positions, in every stage."""


class ScanGeometry(NamedTuple):
    """Window arguments of ``sparse_scan_attention``, each (height, width)."""

    local_kernel: tuple[int, int]
    anchor_kernel: tuple[int, int]
    anchor_dilation: tuple[int, int]


def adaptive_scan(height: int, width: int, grid_first: bool = False) -> ScanGeometry:
    """The released rule: kernels and dilation from the shorter side of the map.

    Args:
        height: Of the map, at least 1.
        width: Of the map, at least 1.
        grid_first: False: local window 7, then ``side // 7`` anchors (blocks 0, 2, ... of a
            stage). True: the two numbers swapped (blocks 1, 3, ...; ``is_reverse`` in the
            released code).

    Returns:
        The released geometry wherever the released code runs (side >= 7); below, windows shrink
        to fit.
    """
    side = min(height, width)
    cells = side // WINDOW
    local, anchor = (cells, WINDOW) if grid_first else (WINDOW, cells)
    anchor_kernel = _odd(anchor)
    # The released code starts at the local window and counts down until the anchors fit.
    dilation = min(local, side // anchor_kernel)
    return _fit(height, width, _odd(local), anchor_kernel, dilation)


def spread_scan(
    height: int,
    width: int,
    local_kernel: int,
    anchor_kernel: int,
    anchor_dilation: int | None = None,
) -> ScanGeometry:
    """Kernels that do not depend on the map.

    Args:
        height: Of the map, at least 1.
        width: Of the map, at least 1.
        local_kernel: Odd window around every anchor, in positions.
        anchor_kernel: Odd number of anchors along each axis.
        anchor_dilation: Distance between anchors in positions; None spreads them over the shorter
            side, ``min(height, width) // anchor_kernel``.

    Raises:
        ValueError: If a kernel is not odd and positive, or the dilation is below 1.
    """
    for name, kernel in (('local_kernel', local_kernel), ('anchor_kernel', anchor_kernel)):
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f'{name} must be odd and positive, got {kernel}')
    if anchor_dilation is None:
        anchor_dilation = min(height, width) // anchor_kernel
    elif anchor_dilation < 1:
        raise ValueError(f'anchor_dilation must be at least 1, got {anchor_dilation}')
    return _fit(height, width, local_kernel, anchor_kernel, anchor_dilation)


def _odd(size: int) -> int:
    return size // 2 * 2 + 1


def _fit(
    height: int, width: int, local_kernel: int, anchor_kernel: int, dilation: int
) -> ScanGeometry:
    size, dilation = (height, width), max(dilation, 1)
    local, _ = fit_window(size, (local_kernel, local_kernel), (1, 1))
    anchor, anchor_dilation = fit_window(size, (anchor_kernel, anchor_kernel), (dilation, dilation))
    return ScanGeometry(local, anchor, anchor_dilation)
