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

from mmlocalattn.engine.visualisation import Attention, Step

TEMPLATE = Path(__file__).with_suffix('.html')
MAX_SIDE = 800  # pixels of the image in the page
SLACK = 200  # bytes for the strides of a layer and the names of its arrays
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
) -> list[int]:
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
        For each layer, the distance between the queries of the page in positions of the map.

    Raises:
        ValueError: If ``max_bytes`` is not enough for one query per layer.
    """
    template, (height, width) = TEMPLATE.read_text('utf-8'), image.shape[:2]
    data = dict(
        title=title,
        weights=weights,
        image=_picture(image),
        size=[height, width],
        points=points,
        layers=[_describe(*layer) for layer in layers],
    )
    fixed = len((template + _to_json(data)).encode()) + SLACK * len(layers)
    strides = choose_strides(layers, max_bytes - fixed)
    for described, (attention, heads), stride in zip(data['layers'], layers, strides):
        described['stride'] = stride
        for entry, step, gap in zip(described['steps'], attention.steps, (stride, 1)):
            entry.update(_pack(step, heads, gap, attention.is_signed))
    path.write_text(template.replace('DATA', _to_json(data), 1), 'utf-8')
    return strides


def choose_strides(layers: Sequence[Layer], max_bytes: int) -> list[int]:
    """The distance between queries of each layer: 1, or more where it saves most.

    Raises:
        ValueError: If one query per layer is too much already.
    """
    strides = [1] * len(layers)
    sizes = [_encoded_bytes(*layer, 1) for layer in layers]
    while sum(map(sum, sizes)) > max_bytes:
        shrinkable = [i for i, (a, _) in enumerate(layers) if strides[i] < max(a.query_size)]
        if not shrinkable:
            raise ValueError(
                f'the page needs {sum(map(sum, sizes)) / 1e6:.1f} MB of weights even for single '
                f'queries and may have {max(max_bytes, 0) / 1e6:.1f} MB: choose fewer --stages, '
                '--blocks or --heads, a smaller --short-side, or a larger --max-mb'
            )
        largest = max(shrinkable, key=lambda i: sizes[i][0])
        strides[largest] += 1
        sizes[largest] = _encoded_bytes(*layers[largest], strides[largest])
    return strides


def _encoded_bytes(attention: Attention, heads: Sequence[int], stride: int) -> list[int]:
    """Of the first step at every ``stride``-th query, and of the second at all positions."""
    sizes = []
    for step, (height, width), gap in zip(
        attention.steps, (attention.query_size, attention.size), (stride, 1)
    ):
        windows = -(-height // gap) * -(-width // gap) * len(heads)
        taps = step.rows.shape[1] * step.columns.shape[1]
        sizes.append(sum(-(-windows * number // 3) * 4 for number in (taps, PEAK_BYTES)))
    return sizes


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
        signed=attention.is_signed,
        steps=[
            dict(rows=step.rows.tolist(), columns=step.columns.tolist()) for step in attention.steps
        ],
    )


def _pack(step: Step, heads: Sequence[int], stride: int, signed: bool) -> dict:
    """The weights of a step at every ``stride``-th query."""
    rows, columns = (torch.arange(0, index.shape[0], stride) for index in (step.rows, step.columns))
    weights = step.weights(torch.cartesian_prod(rows, columns))[:, list(heads)]
    levels, dtype = (127, torch.int8) if signed else (255, torch.uint8)
    peaks = weights.abs().amax((-2, -1), keepdim=True)
    fractions = weights / peaks.clamp(min=torch.finfo(weights.dtype).tiny)
    return dict(
        stride=stride,
        grid=[len(rows), len(columns)],
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
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    code = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return 'data:image/jpeg;base64,' + base64.b64encode(code.tobytes()).decode()
