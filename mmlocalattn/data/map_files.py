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
        is_plain: Whether a data loader can read the indices as they are: one channel, no JPEG.
        error: Why it cannot be read; empty if it can.
    """

    path: str
    size: tuple[int, int] = (0, 0)
    values: frozenset[int] = frozenset()
    colours: frozenset[Colour] = frozenset()
    palette: Mapping[int, Colour] = field(default_factory=dict)
    is_jpeg: bool = False
    is_plain: bool = True
    error: str = ''


def look_at_map(path: str) -> MapContent:
    """See what occurs in a map."""
    try:
        with Image.open(path) as image:
            is_jpeg = image.format == 'JPEG'
            is_plain = not is_jpeg and len(image.getbands()) == 1
            labels = map_array(image)
            values = np.unique(labels if labels.ndim == 2 else _packed(labels))
            shown = _shown(image, values) if labels.ndim == 2 else {}
    except Exception as error:  # whatever a decoder raises of a damaged file
        reason = str(error).partition(f' {path!r}')[0]
        return MapContent(path, error=reason or type(error).__name__)
    size = labels.shape[1], labels.shape[0]
    if labels.ndim == 3:
        return MapContent(path, size, colours=frozenset(_unpacked(values)), is_jpeg=is_jpeg)
    found = frozenset(values.tolist())
    return MapContent(path, size, found, palette=shown, is_jpeg=is_jpeg, is_plain=is_plain)


def _shown(image: Image.Image, values: NDArray) -> dict[int, Colour]:
    """The colours that a palette shows values in; empty without one."""
    palette = image.getpalette() if image.mode == 'P' else None
    colours = np.reshape(palette or [], (-1, 3)).tolist()
    return {value: tuple(colours[value]) for value in values.tolist() if value < len(colours)}


def map_array(image: Image.Image) -> NDArray:
    """(H, W) of indices, or (H, W, 3) of colours if the channels of a picture differ.

    Raises:
        OSError: If the file is damaged.
        ValueError: If it has numbers that are not whole.
    """
    if image.mode in ('RGBA', 'LA', 'PA'):
        image = image.convert('RGB' if image.mode != 'LA' else 'L')
    array = np.array(image)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.kind == 'f':
        if not (array == np.rint(array)).all():
            raise ValueError('it has numbers that are not whole')
        array = array.astype(np.int64)
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
        numbers = map_array(image).astype(np.int64)
        if any(isinstance(key, tuple) for key in labels):
            numbers = _packed(_coloured(image, numbers))
    keys = [_number(key) for key in labels]
    order = np.argsort(keys)
    known = np.array(keys)[order]
    places = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
    indices = np.array(list(labels.values()), np.uint8)[order][places]
    indices[known[places] != numbers] = IGNORED
    with whole_file(path) as partial:
        Image.fromarray(indices).save(partial)


def _coloured(image: Image.Image, array: NDArray) -> NDArray:
    """(H, W, 3) colours of what :func:`map_array` gave: of a palette, or grey."""
    if array.ndim == 3:
        return array
    values, places = np.unique(array, return_inverse=True)
    shown = _shown(image, values)
    colours = np.array([shown.get(value, (value,) * 3) for value in values.tolist()])
    return colours[places.reshape(array.shape)]


def _number(key: int | Sequence[int]) -> int:
    if isinstance(key, int):
        return key
    red, green, blue = key
    return red << 16 | green << 8 | blue
