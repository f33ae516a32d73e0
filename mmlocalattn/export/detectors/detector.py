"""What a detector is when it leaves Python."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmlocalattn.export.agreement import tied, ties_in_words
from mmlocalattn.export.detectors.nms import NMS, as_operator, best, suppress, take
from mmlocalattn.export.modules import Exportable


class Detector(Exportable):
    """An image to a constant number of detections.

    The whole of a padded image counts as image, as if its ``img_shape`` were the padded one:
    boxes are clipped to it, where mmdet clips to the part that is not padding.
    """

    output_names: tuple[str, ...] = ('boxes', 'scores', 'labels')
    requires: tuple[str, ...] = (*Exportable.requires, 'import torchvision')

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detections from the best to the worst.

        Args:
            image: (B, C, H, W), as the ``data_preprocessor`` gives it.

        Returns:
            Boxes (B, K, 4) as (x1, y1, x2, y2) in pixels, scores (B, K), labels (B, K), and of
            instance segmentation masks (B, K, h, w), probabilities. Past the last detection all
            are 0, but the label -1.
        """
        raise NotImplementedError

    def for_onnx(self) -> contextlib.AbstractContextManager:
        """While the graph of an ONNX file is made."""
        return as_operator()

    def difference(self, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        """The largest error of detections that match one to one.

        Boxes are relative to the largest coordinate, scores and masks are in [0, 1]. Where scores
        or overlaps are equal up to rounding, either detection is right: one in twenty may have no
        match, more make the error infinite.
        """
        scale = max(expected[0].abs().amax().item(), 1.0)
        worst, unmatched, number = 0.0, 0, 0
        for item in range(len(expected[0])):
            (boxes, scores, labels, *masks), (boxes2, scores2, labels2, *masks2) = (
                [output[item][outputs[2][item] >= 0] for output in outputs]
                for outputs in (actual, expected)
            )
            error = (boxes2[:, None] - boxes).abs().amax(2) / scale
            error = torch.maximum(error, (scores2[:, None] - scores).abs())
            error = error.masked_fill(labels2[:, None] != labels, torch.inf)
            pairs = _matched(error)
            number += max(error.shape)
            unmatched += max(error.shape) - len(pairs)
            for place2, place in pairs:
                worst = max(worst, error[place2, place].item())
                if masks:
                    worst = max(worst, (masks2[0][place2] - masks[0][place]).abs().max().item())
        return torch.inf if unmatched > number / 20 else worst

    def doubt(self, expected: Sequence[Tensor]) -> str:
        """Equal scores, in words."""
        kept = [scores[labels >= 0] for scores, labels in zip(*expected[1:3])]
        return ties_in_words(sum(map(tied, kept)), sum(map(len, kept)))


def _matched(error: Tensor, limit: float = 0.01) -> list[tuple[int, int]]:
    """Pairs of a row and a column, the best first, none twice, with errors up to a limit."""
    error, pairs = error.clone(), []
    while error.numel() and error.min() <= limit:
        row, column = divmod(int(error.argmin()), error.shape[1])
        pairs.append((row, column))
        error[row], error[:, column] = torch.inf, torch.inf
    return pairs


def sides(image: Tensor) -> tuple[int, int]:
    """Height and width, in a trace as the constants that they are there."""
    height, width = image.shape[-2:]
    return (int(height), int(width)) if torch.jit.is_tracing() else (height, width)


def clipped(boxes: Tensor, image: Tensor) -> Tensor:
    """Boxes (..., 4) inside of the image."""
    height, width = sides(image)
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack((x, y), -1).flatten(-2)


def decoded(coder: Any, priors: Tensor, deltas: Tensor, image: Tensor) -> Tensor:
    """Boxes (..., 4) of what a head predicts (..., 4) about anchors (..., 4) or points (..., 2)."""
    boxes = coder.decode(priors.reshape(-1, priors.shape[-1]), deltas.reshape(-1, 4))
    boxes = boxes.view(deltas.shape)
    return clipped(boxes, image) if coder.clip_border else boxes


def check_coder(coder: Any) -> None:
    """Refuse what :func:`decoded` does not serve.

    Raises:
        ValueError: With the name of its class.
    """
    name = type(coder).__name__
    if name not in ('DeltaXYWHBBoxCoder', 'DistancePointBBoxCoder', 'TBLRBBoxCoder'):
        raise ValueError(f'its boxes are decoded by {name}')


def large_enough(boxes: Tensor, scores: Tensor, min_size: float) -> Tensor:
    """Scores (B, N), and -1 for boxes (B, N, 4) that are not wider and higher than a size."""
    if min_size < 0:
        return scores
    wide, high = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return scores.masked_fill(~((wide > min_size) & (high > min_size)), -1)


def detections(
    nms: NMS, boxes: Tensor, scores: Tensor, labels: Tensor, number: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Suppress, and give the best.

    Args:
        nms: Of the ``test_cfg``.
        boxes: (B, N, 4).
        scores: (B, N), below 0 where there is no box.
        labels: (B, N).
        number: How many to give, K.

    Returns:
        Boxes (B, K, 4), scores (B, K), labels (B, K) and the places (B, K) that they had.
    """
    top, places = best(suppress(nms, boxes, scores, labels), number)
    return *only_present(take(boxes, places), top, take(labels, places)), places


def only_present(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Detections without what places hold that have none, whose score is below 0."""
    absent = scores < 0
    return (
        boxes.masked_fill(absent[..., None], 0),
        scores.clamp(min=0),
        labels.masked_fill(absent, -1),
    )
