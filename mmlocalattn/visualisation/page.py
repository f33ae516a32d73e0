"""The interactive page of tools/analysis/vis_attention.py: one HTML file that holds its data."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmlocalattn.files import whole_file
from mmlocalattn.visualisation.attention import Attention

TEMPLATE = Path(__file__).with_suffix('.html')
MAX_SIDE = 800  # pixels of the image in the page
SLACK = 200  # bytes for the names of the arrays of a layer
PEAK_BYTES = 4  # of the largest weight of each window, float32

Layer = tuple[Attention, Sequence[int]]
"""Attention and the heads to show of it."""


def write_page(
    path: Path,
    layers: Sequence[Layer],
    image: NDArray[np.uint8],
    points: Sequence[tuple[int, int]],
    title: str,
    weights: str,
    max_bytes: int,
) -> list[tuple[int, int]]:
    """Write the page.

    Steps of attention are stored one by one, as 8-bit fractions of the largest weight of each
    window, and multiplied out in the browser. Where that is too much, queries are left out.

    Args:
        path: Of the HTML file.
        layers: In the order in which they are offered.
        image: (H, W, 3), BGR.
        points: (x, y) in pixels of the image, offered as starting points.
        title: Names the model.
        weights: Says where its weights come from.
        max_bytes: Of the file.

    Returns:
        How many rows and columns of queries the page has of each layer.

    Raises:
        ValueError: If ``max_bytes`` is not enough for the fewest queries.
    """
    style = TEMPLATE.with_suffix('.css').read_text('utf-8')
    template = TEMPLATE.read_text('utf-8').replace('STYLE\n', style, 1)
    height, width = image.shape[:2]
    data = dict(
        title=title,
        weights=weights,
        image=_picture(image),
        size=[height, width],
        points=points,
        layers=[_describe(*layer) for layer in layers],
    )
    fixed = len((template + _to_json(data)).encode()) + SLACK * len(layers)
    kept = choose_queries(layers, max_bytes - fixed)
    for described, (attention, heads), (rows, columns) in zip(data['layers'], layers, kept):
        described['kept'] = [rows.tolist(), columns.tolist()]
        queries = torch.cartesian_prod(rows, columns)
        for entry, step in zip(described['steps'], attention.steps):
            entry.update(_pack(step.weights(queries)[:, list(heads)], attention.is_signed))
    with whole_file(path) as partial:
        partial.write_text(template.replace('DATA', _to_json(data), 1), 'utf-8')
    return [(len(rows), len(columns)) for rows, columns in kept]


def choose_queries(layers: Sequence[Layer], max_bytes: int) -> list[tuple[Tensor, Tensor]]:
    """Rows and columns of the queries of each layer: all, or fewer where that saves most.

    Raises:
        ValueError: If the fewest are too much.
    """
    strides = [1] * len(layers)
    kept = [_every(attention, 1) for attention, _ in layers]
    sizes = [_encoded_bytes(*layer, *queries) for layer, queries in zip(layers, kept)]
    while sum(sizes) > max_bytes:
        thinnable = [i for i, (a, _) in enumerate(layers) if strides[i] < max(_periods(a))]
        if not thinnable:
            raise ValueError(
                f'the page needs {sum(sizes) / 1e6:.1f} MB for the weights of the fewest queries '
                f'and may have {max(max_bytes, 0) / 1e6:.1f} MB: choose fewer stages, blocks or '
                'heads, a smaller image (--short-side), or a larger bound (--max-mb)'
            )
        i = max(thinnable, key=lambda i: sizes[i])
        strides[i] += 1
        kept[i] = _every(layers[i][0], strides[i])
        sizes[i] = _encoded_bytes(*layers[i], *kept[i])
    return kept


def _periods(attention: Attention) -> tuple[int, int]:
    """Rows and columns from one anchor to the next; of the map if there are no anchors."""
    first, *others = attention.steps
    rows, columns = (
        int(index[0, 1] - index[0, 0]) if others and index.shape[1] > 1 else length
        for index, length in zip((first.rows, first.columns), attention.query_size)
    )
    return rows, columns


def _every(attention: Attention, stride: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of every ``stride``-th query, the anchors of each of them included.

    A query and its anchors lie at the same place of a period.
    """
    rows, columns = (
        torch.tensor([i for i in range(length) if i % period % stride == 0])
        for length, period in zip(attention.query_size, _periods(attention))
    )
    return rows, columns


def _encoded_bytes(
    attention: Attention, heads: Sequence[int], rows: Tensor, columns: Tensor
) -> int:
    """Of all steps at these rows and columns."""
    windows = len(rows) * len(columns) * len(heads)
    taps = [step.rows.shape[1] * step.columns.shape[1] for step in attention.steps]
    numbers = [*taps, *[PEAK_BYTES] * len(taps)]
    return sum(-(-windows * number // 3) * 4 for number in numbers)


def _describe(attention: Attention, heads: Sequence[int]) -> dict:
    """What the page knows of a layer, but for the weights."""
    return dict(
        stage=attention.stage,
        block=attention.block,
        operator=attention.operator,
        caption=attention.caption,
        size=attention.size,
        queries=attention.query_size,
        heads=list(heads),
        kept=[list(range(length)) for length in attention.query_size],
        signed=attention.is_signed,
        steps=[
            dict(rows=step.rows.tolist(), columns=step.columns.tolist()) for step in attention.steps
        ],
    )


def _pack(weights: Tensor, signed: bool) -> dict:
    """Weights (Q, num_heads, kh, kw) as fractions of the largest of each window."""
    levels, dtype = (127, torch.int8) if signed else (255, torch.uint8)
    peaks = weights.abs().amax((-2, -1), keepdim=True)
    fractions = weights / peaks.clamp(min=torch.finfo(weights.dtype).tiny)
    return dict(
        peaks=_base64((peaks / levels).float()),
        weights=_base64((fractions * levels).round().to(dtype)),
    )


def _to_json(data: dict) -> str:
    """JSON that may stand in HTML."""
    return json.dumps(data, separators=(',', ':')).replace('<', '\\u003c')


def _base64(tensor: Tensor) -> str:
    return base64.b64encode(tensor.contiguous().numpy().tobytes()).decode()


def _picture(image: NDArray[np.uint8]) -> str:
    """The image as a data URL, made smaller if it is large."""
    scale = min(1.0, MAX_SIDE / max(image.shape[:2]))
    if scale < 1:
        resized = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        image = np.asarray(resized, np.uint8)
    code = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return 'data:image/jpeg;base64,' + base64.b64encode(code.tobytes()).decode()
