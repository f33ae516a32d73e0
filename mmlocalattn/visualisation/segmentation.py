"""Index maps on photographs that stay legible: tinted regions, and one legend below."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

NOT_PAINTED = ('background', '_background_', 'bg', 'ignore', 'ignored', 'unlabeled', 'void')
LARGEST_ALPHA = 0.5  # of the tint: half of the photograph is always seen
LEGEND_ROWS = 4  # at most
_ROW, _SWATCH, _GAP = 18, 10, 6  # pixels
_FONT, _FONT_SCALE, _LINE = cv2.FONT_HERSHEY_SIMPLEX, 0.4, cv2.LINE_AA

Color = Sequence[int]


def draw_maps(
    image: NDArray[np.uint8],
    maps: Sequence[NDArray],
    classes: Sequence[str],
    palette: Sequence[Color],
    alpha: float = LARGEST_ALPHA,
) -> NDArray[np.uint8]:
    """Tint an image by index maps, side by side, above a legend of the classes that are there.

    A class that is called background or so is not painted, and neither is a label without a class.
    The size of the picture depends on that of the image, the classes and the number of maps alone:
    the frames of a video have one size.

    Args:
        image: (H, W, 3) BGR.
        maps: (H, W) labels each.
        classes: Names by label.
        palette: (R, G, B) by label, 0 to 255.
        alpha: Share of the colour, at most half.

    Returns:
        (H + legend, maps x W, 3) BGR.
    """
    painted = [i for i, name in enumerate(classes) if name.strip().lower() not in NOT_PAINTED]
    colors = np.zeros((len(classes), 3))
    for label, color in enumerate(palette[: len(classes)]):
        colors[label] = color[::-1]
    tinted = [_tint(image, labels, painted, colors, min(alpha, LARGEST_ALPHA)) for labels in maps]
    picture = np.hstack(tinted)
    areas = np.zeros(len(classes), np.int64)
    for labels in maps:
        known = labels[(labels >= 0) & (labels < len(classes))].astype(np.int64)
        areas += np.bincount(known.ravel(), minlength=len(classes))
    there = sorted((i for i in painted if areas[i]), key=lambda label: -areas[label])
    rows = _rows_of([classes[i] for i in painted], picture.shape[1])
    height = min(len(rows), LEGEND_ROWS) * _ROW
    legend = _draw_legend([classes[i] for i in there], colors[there], picture.shape[1], height)
    return np.vstack([picture, legend])


def _tint(
    image: NDArray[np.uint8],
    labels: NDArray,
    painted: Sequence[int],
    colors: NDArray[np.float64],
    alpha: float,
) -> NDArray[np.uint8]:
    where = np.isin(labels, painted)
    tinted = image.copy()
    mixed = (1 - alpha) * image[where] + alpha * colors[labels[where].astype(np.int64)]
    tinted[where] = np.rint(mixed)
    return tinted


def _rows_of(names: Sequence[str], width: int) -> list[list[tuple[str, int]]]:
    """Names in rows, each with the pixel where its swatch begins."""
    rows: list[list[tuple[str, int]]] = [[]]
    left = _GAP
    for name in names:
        size = _SWATCH + 2 * _GAP + cv2.getTextSize(name, _FONT, _FONT_SCALE, 1)[0][0]
        if left + size > width and rows[-1]:
            rows.append([])
            left = _GAP
        rows[-1].append((name, left))
        left += size + _GAP
    return rows


def _draw_legend(
    names: Sequence[str], colors: NDArray[np.float64], width: int, height: int
) -> NDArray[np.uint8]:
    """The names that fit, black on white behind their colours."""
    legend = np.full((height, width, 3), 255, np.uint8)
    color = iter(colors.tolist())
    for row, items in enumerate(_rows_of(names, width)[: height // _ROW]):
        top = row * _ROW + (_ROW - _SWATCH) // 2
        for name, left in items:
            corner = (left + _SWATCH - 1, top + _SWATCH - 1)
            cv2.rectangle(legend, (left, top), corner, next(color), cv2.FILLED)
            place = (left + _SWATCH + _GAP, top + _SWATCH)
            cv2.putText(legend, name, place, _FONT, _FONT_SCALE, (0, 0, 0), 1, _LINE)
    return legend
