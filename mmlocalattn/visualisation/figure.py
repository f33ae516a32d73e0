"""The pictures of tools/analysis/vis_attention.py: one point, one stage, every block and head."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from mmlocalattn.files import whole_file
from mmlocalattn.visualisation.attention import Attention, Step

COLUMNS = 9  # pictures side by side
CELL, GAP, MARGIN = 1.5, 0.08, 0.15  # inches
TITLE, CAPTION, NAME, LEGEND = 0.4, 0.5, 0.22, 0.5  # heights, inches
GROUND, TEXT, SOFT, QUERY = '#14161b', '#e8eaee', '#9ba3b1', '#3dff8a'
HOT = [(190, 55, 0), (240, 105, 15), (255, 182, 56), (255, 246, 200)]  # from little to much
COLD = [(0, 75, 190), (25, 120, 240), (95, 185, 255), (215, 240, 255)]  # of what is subtracted
Box = tuple[float, float, float, float]
"""Top, left, bottom and right, in fractions of the image."""


def draw_stage(
    path: Path,
    layers: Sequence[tuple[Attention, Sequence[int]]],
    image: NDArray[np.uint8],
    point: tuple[int, int],
    title: str,
) -> None:
    """Draw what one point attends to in the layers of one stage.

    For each layer: the anchors and windows over the image, the mean of the heads, each head. The
    last ones are parts of the image where the whole would be too small to see.

    Args:
        path: Of the PNG file.
        layers: Attention and the heads to draw of it.
        image: (H, W, 3), BGR.
        point: (x, y) in pixels of the image.
        title: Above the pictures.
    """
    counts = [2 + len(heads) for _, heads in layers]
    columns = min(max(counts), COLUMNS)
    side = CELL * image.shape[0] / image.shape[1]  # the height of a picture
    heights = [CAPTION + -(-count // columns) * (side + NAME) for count in counts]
    size = (max(columns * CELL, 7.0) + 2 * MARGIN, TITLE + sum(heights) + LEGEND)
    figure = Figure(size, facecolor=GROUND)
    _write(figure, TITLE / 2, title, size=10.5)
    above = TITLE
    for (attention, heads), count, height in zip(layers, counts, heights):
        _write(figure, above + 0.17, _describe(attention), size=8.5, weight='bold')
        axes = [
            _add_axes(
                figure,
                MARGIN + i % columns * CELL,
                above + CAPTION + i // columns * (side + NAME),
                CELL - GAP,
                side - GAP * side / CELL,
            )
            for i in range(count)
        ]
        _draw_layer(axes, attention, heads, image, point)
        above += height
    _draw_legend(figure, above + 0.05, any(attention.is_signed for attention, _ in layers))
    with whole_file(path) as partial:
        figure.savefig(partial, format='png', dpi=110, facecolor=GROUND)


def _write(figure: Figure, above: float, text: str, left: float = MARGIN, **style: Any) -> None:
    """Text at inches from the top and the left."""
    width, height = figure.get_size_inches()
    style = dict(color=TEXT, va='center') | style
    figure.text(left / width, 1 - above / height, text, **style)


def _add_axes(figure: Figure, left: float, above: float, width: float, height: float) -> Axes:
    """Axes at inches from the left and the top."""
    all_width, all_height = figure.get_size_inches()
    box = (left / all_width, 1 - (above + height) / all_height)
    ax = figure.add_axes((*box, width / all_width, height / all_height))
    ax.set_axis_off()
    return ax


def query_of(
    attention: Attention, point: tuple[int, int], shape: tuple[int, ...]
) -> tuple[int, int]:
    """(row, column) of the query whose cell holds a point (x, y) of an image (H, W, ...)."""
    (rows, columns), (x, y) = attention.query_size, point
    return y * rows // shape[0], x * columns // shape[1]


def _describe(attention: Attention) -> str:
    rows, columns = attention.size
    name = 'step down' if attention.block == 'down' else f'block {attention.block}'
    return f'{name}, map {rows} x {columns}   {attention.caption}'


def _draw_layer(
    axes: Sequence[Axes],
    attention: Attention,
    heads: Sequence[int],
    image: NDArray[np.uint8],
    point: tuple[int, int],
) -> None:
    query = query_of(attention, point, image.shape)
    maps = attention.map(*query)[list(heads)].numpy()
    boxes, dots = _geometry(attention, query)
    view = _view(boxes)
    _draw_base(axes[0], attention, image, query, boxes, (0, 0, 1, 1))
    edge = dict(fill=False, ec='w', lw=0.7)
    for box in boxes:
        axes[0].add_patch(_rectangle(box, alpha=0.45 if len(boxes) > 1 else 0.9, **edge))
    axes[0].plot(*dots.T, 'o', c='w', ms=1.8, mew=0)
    if view[2] - view[0] < 1:
        axes[0].add_patch(_rectangle(view, ls=(0, (4, 3)), **edge))
    axes[0].set_title('what it sees', color=SOFT, size=7.5, pad=3)
    for ax, map_, name in zip(
        axes[1:], [maps.mean(0), *maps], ['mean', *(f'head {head}' for head in heads)]
    ):
        _draw_base(ax, attention, image, query, boxes, view)
        peak = np.abs(map_).max() or 1.0
        ax.imshow(
            _colours(map_ / peak), extent=(0, 1, 1, 0), interpolation='nearest', aspect='auto'
        )
        ax.set_xlim(view[1], view[3])
        ax.set_ylim(view[2], view[0])
        text = f'{peak:.2g}' if attention.is_signed else f'{100 * peak:.2g} %'
        ax.set_title(f'{name}, up to {text}', color=TEXT, size=7.5, pad=3)


def _draw_base(
    ax: Axes,
    attention: Attention,
    image: NDArray[np.uint8],
    query: tuple[int, int],
    boxes: Sequence[Box],
    view: Box,
) -> None:
    """The image, brighter where the query sees it, and the query."""
    grey = image[..., ::-1] / 255
    grey = 0.25 * grey + 0.75 * (grey @ [0.299, 0.587, 0.114])[..., None]
    seen = np.zeros(image.shape[:2], bool)
    for box in boxes:
        sides = (np.array(box) * np.tile(seen.shape, 2)).round().astype(int)
        seen[sides[0] : sides[2], sides[1] : sides[3]] = True
    light = np.where(seen, 0.72, 0.38)[..., None]
    ax.imshow(grey * light, extent=(0, 1, 1, 0), aspect='auto')
    rows, columns = attention.query_size
    cell = (query[0] / rows, query[1] / columns, (query[0] + 1) / rows, (query[1] + 1) / columns)
    shade = [patheffects.withStroke(linewidth=2.6, foreground='k')]
    ax.add_patch(
        _rectangle(cell, fill=False, ec=QUERY, lw=1.2, zorder=5, path_effects=shade, clip_on=False)
    )
    ax.set_xlim(view[1], view[3])
    ax.set_ylim(view[2], view[0])


def _geometry(
    attention: Attention, query: tuple[int, int]
) -> tuple[list[Box], NDArray[np.float64]]:
    """The windows that the query sees, directly or through anchors, and points (x, y).

    Points are the anchors, or the positions of a window if they lie apart.
    """
    size = attention.size
    first, last = attention.steps[0], attention.steps[-1]
    rows, columns = (
        index[index >= 0].tolist() for index in (first.rows[query[0]], first.columns[query[1]])
    )
    dots = [((x + 0.5) / size[1], (y + 0.5) / size[0]) for y in rows for x in columns]
    if len(attention.steps) > 1:
        return [_box(last, y, x, size) for y in rows for x in columns], np.array(dots)
    has_gaps = any(b - a > 1 for axis in (rows, columns) for a, b in pairwise(axis))
    return [_box(first, *query, size)], np.array(dots if has_gaps else np.empty((0, 2)))


def _box(step: Step, row: int, column: int, size: tuple[int, int]) -> Box:
    rows, columns = (index[index >= 0].tolist() for index in (step.rows[row], step.columns[column]))
    return (
        rows[0] / size[0],
        columns[0] / size[1],
        (rows[-1] + 1) / size[0],
        (columns[-1] + 1) / size[1],
    )


def _view(boxes: Sequence[Box]) -> Box:
    """The part of the image to look at: all of it, unless the windows are a small part."""
    array = np.array(boxes)
    low, high = array[:, :2].min(0), array[:, 2:].max(0)
    side = 1.7 * (high - low).max()
    if side > 0.75:
        return 0, 0, 1, 1
    start = np.clip((low + high - side) / 2, 0, 1 - side)
    return (*start, *(start + side))


def _rectangle(box: Box, **style: Any) -> Rectangle:
    top, left, bottom, right = box
    return Rectangle((left, top), right - left, bottom - top, **style)


def _colours(fractions: NDArray[np.floating]) -> NDArray[np.float64]:
    """Red, green, blue and alpha (..., 4) of fractions of the scale, -1 to 1."""
    size = np.abs(fractions)
    hot, cold = (
        np.stack([np.interp(size, np.linspace(0, 1, 4), channel) for channel in zip(*stops)], -1)
        for stops in (HOT, COLD)
    )
    alpha = 0.9 * size[..., None] ** 0.8
    return np.concatenate([np.where(fractions[..., None] < 0, cold, hot) / 255, alpha], -1)


def _draw_legend(figure: Figure, above: float, signed: bool) -> None:
    """What the marks and colours mean."""
    entries = [
        ('query', Line2D([], [], c=QUERY, marker='s', ms=6, mfc='none', lw=0)),
        ('window', Line2D([], [], c='w', marker='s', ms=6, mfc='none', lw=0)),
        ('anchors, or positions apart', Line2D([], [], c='w', marker='o', ms=3, lw=0)),
        ('part shown beside', Line2D([], [], c='w', lw=0.8, ls=(0, (4, 3)))),
    ]
    width, height = figure.get_size_inches()
    names, handles = zip(*entries)
    figure.legend(
        handles,
        names,
        loc='center left',
        bbox_to_anchor=(1.9 / width, 1 - (above + 0.12) / height),
        ncols=4,
        fontsize=7.5,
        labelcolor=SOFT,
        frameon=False,
        handletextpad=0.3,
        columnspacing=1.2,
    )
    ax = _add_axes(figure, MARGIN, above, 1.6, 0.1)
    scale = np.linspace(-1 if signed else 0, 1, 256)[None]
    ax.imshow(np.full((1, 1, 3), 0.17), extent=(0, 1, 0, 1), aspect='auto')
    ax.imshow(_colours(scale), extent=(0, 1, 0, 1), aspect='auto')
    ends = ('subtracted', 'added') if signed else ('0', 'largest of a picture')
    _write(figure, above + 0.2, ends[0], color=SOFT, size=7)
    _write(figure, above + 0.2, ends[1], MARGIN + 1.6, color=SOFT, size=7, ha='right')
