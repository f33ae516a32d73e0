"""Boxes, polygons and masks in COCO's terms."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]  # width and height
MOST_BITS = 60  # of the length of a run


def size_text(size: Size) -> str:
    """A size for people to read."""
    return f'{size[0]}x{size[1]} (width x height)'


def polygon_area(polygon: Sequence[float]) -> float:
    """The area inside of x1, y1, x2, y2, ..."""
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(ys)))) / 2


def box_of(polygons: Sequence[Sequence[float]]) -> list[float]:
    """x, y, width and height of the box around polygons."""
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def rle_area(rle: dict[str, Any]) -> int:
    """The number of pixels of a mask.

    Raises:
        IndexError: If its counts end too early.
    """
    counts = rle['counts']
    return sum((decode_counts(counts) if isinstance(counts, str) else counts)[1::2])


def decode_counts(text: str) -> list[int]:
    """The lengths of the runs in a string of COCO's: 5 bits a character, signed, as differences.

    Raises:
        IndexError: If the string ends too early, or has no lengths.
    """
    runs: list[int] = []
    value = shift = 0
    open_ = False
    for bits in (ord(character) - 48 for character in text):
        value |= (bits & 0x1F) << shift
        shift += 5
        if shift > MOST_BITS:
            raise IndexError('it has a number that is no length')
        open_ = bool(bits & 0x20)
        if not open_:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if open_:
        raise IndexError('it ends too early')
    return runs


def encode_mask(
    mask: NDArray[np.bool_], corner: tuple[int, int], size: Size
) -> tuple[dict[str, Any], list[float]]:
    """COCO's run-length encoding of a mask, and the box around it.

    Args:
        mask: (h, w) part of the picture.
        corner: x and y of its top left pixel.
        size: Of the picture.

    Raises:
        ValueError: If no pixel of the mask is in the picture.
    """
    x, y = corner
    width, height = size
    whole = np.zeros((height, width), bool)
    part = mask[max(-y, 0) : max(height - y, 0), max(-x, 0) : max(width - x, 0)]
    top, left = max(y, 0), max(x, 0)
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    rows, columns = np.nonzero(whole)
    if not rows.size:
        raise ValueError('the mask has no pixel in the picture')
    pixels = np.concatenate([[False], whole.ravel(order='F'), [False]])  # columns after each other
    borders = np.flatnonzero(pixels[1:] != pixels[:-1])
    ends = [0, *borders.tolist()] + ([] if pixels[-2] else [whole.size])
    counts = [int(b - a) for a, b in pairwise(ends)]
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    return {'size': [height, width], 'counts': counts}, [float(value) for value in box]
