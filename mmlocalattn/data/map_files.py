"""Files of segmentation maps, of indices or colours: what is in them, and writing indices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmlocalattn.files import whole_file

Colour = tuple[int, int, int]
IGNORED = 255


@dataclass(frozen=True)
class MapContent:
    """What occurs in one map.

    Attributes:
        path: Of the file.
        size: Width and height.
        values: Indices that occur, if it is one of indices.
        colours: Colours that occur, if it is one of colours.
        palette: Of a file with a palette, the colour that each index is shown in.
        is_jpeg: Whether its values were changed by compression.
        error: Why it cannot be read; empty if it can.
    """

    path: str
    size: tuple[int, int] = (0, 0)
    values: frozenset[int] = frozenset()
    colours: frozenset[Colour] = frozenset()
    palette: Mapping[int, Colour] = field(default_factory=dict)
    is_jpeg: bool = False
    error: str = ''


def look_at_map(path: str) -> MapContent:
    """See what occurs in a map."""
    try:
        with Image.open(path) as image:
            is_jpeg = image.format == 'JPEG'
            palette = image.getpalette() if image.mode == 'P' else None
            labels = map_array(image)
    except (OSError, SyntaxError, ValueError) as error:
        reason = str(error).partition(f' {path!r}')[0]
        return MapContent(path, error=reason or type(error).__name__)
    size = labels.shape[1], labels.shape[0]
    if labels.ndim == 3:
        colours = frozenset(_unpacked(np.unique(_packed(labels))))
        return MapContent(path, size, colours=colours, is_jpeg=is_jpeg)
    values = frozenset(np.unique(labels).tolist())
    shown = {}
    if palette:
        shown = {
            value: (palette[3 * value], palette[3 * value + 1], palette[3 * value + 2])
            for value in values
            if 3 * value + 2 < len(palette)
        }
    return MapContent(path, size, values, palette=shown, is_jpeg=is_jpeg)


def map_array(image: Image.Image) -> NDArray:
    """(H, W) of indices, or (H, W, 3) of colours if the channels of a picture differ.

    Raises:
        OSError: If the file is damaged.
    """
    if image.mode in ('RGBA', 'LA', 'PA'):
        image = image.convert('RGB' if image.mode != 'LA' else 'L')
    array = np.array(image)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.ndim == 3:
        array = array[..., :3]
        if (array == array[..., :1]).all():
            array = array[..., 0]
    return array


def _packed(colours: NDArray) -> NDArray[np.int64]:
    """(..., 3) colours as one number each."""
    red, green, blue = np.moveaxis(colours.astype(np.int64), -1, 0)
    return (red << 16) | (green << 8) | blue


def _unpacked(numbers: NDArray[np.int64]) -> list[Colour]:
    return [(number >> 16, number >> 8 & 255, number & 255) for number in numbers.tolist()]


def write_map(path: Path, source: str, labels: Mapping[int, int] | Mapping[Colour, int]) -> None:
    """Write a map of indices.

    Args:
        path: A PNG file; its folder is made.
        source: The map that is read.
        labels: Of its values or colours; others are ignored.
    """
    with Image.open(source) as image:
        by_colour = any(isinstance(key, tuple) for key in labels)
        array = np.array(image.convert('RGB')) if by_colour else map_array(image)
    keys = [_number(key) for key in labels]
    numbers = _packed(array) if by_colour else array.astype(np.int64)
    order = np.argsort(keys)
    known = np.array(keys)[order]
    places = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
    indices = np.array(list(labels.values()), np.uint8)[order][places]
    indices[known[places] != numbers] = IGNORED
    with whole_file(path) as partial:
        Image.fromarray(indices).save(partial)


def _number(key: int | Sequence[int]) -> int:
    if isinstance(key, int):
        return key
    red, green, blue = key
    return red << 16 | green << 8 | blue
