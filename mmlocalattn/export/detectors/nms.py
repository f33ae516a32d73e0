"""Non-maximum suppression of a batch, with outputs whose shapes do not depend on the data.

A detection that is absent has a score below 0. So the number of places is constant, and sizes that
depend on the data stay inside of :func:`keep_reference`.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torchvision.ops  # noqa: F401  registers torchvision::nms
from torch import Tensor
from torch.nn import functional

ABSENT = -1.0
"""Score of a place without a detection."""

SPARE = 2
"""Rows that are added where the data decide how many there are, and taken away again: a program of
``torch.export`` asserts that an unknown size is no 0 and no 1."""

LIB = torch.library.Library('mmlocalattn_export', 'DEF')
LIB.define('keep(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor')


class NMS(NamedTuple):
    """What a ``test_cfg`` says about suppression.

    Args:
        iou_threshold: Boxes that overlap a better one by more are suppressed; None: there is no
            suppression.
        class_agnostic: Whether boxes of other classes suppress as well.
    """

    iou_threshold: float | None
    class_agnostic: bool

    @classmethod
    def of(cls, cfg: Mapping[str, Any] | None) -> 'NMS':
        """From the ``nms`` of a ``test_cfg``.

        Raises:
            ValueError: If it is of another type, or has an unknown key.
        """
        if cfg is None:
            return cls(None, False)
        kind = cfg.get('type', 'nms')
        name = kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
        if name != 'nms':
            raise ValueError(f'test_cfg has an nms of type {name!r}')
        # From 10 000 boxes on mmcv runs class after class, which gives the same.
        known = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
        unknown = sorted({*cfg} - known)
        if unknown:
            raise ValueError(f'nms of test_cfg has {unknown[0]!r}')
        return cls(float(cfg['iou_threshold']), bool(cfg.get('class_agnostic', False)))


def keep_reference(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """``mmlocalattn_export::keep``: which boxes remain, of items that do not influence each other.

    Args:
        boxes: (B, N, 4) as (x1, y1, x2, y2).
        scores: (B, N), below 0 where there is no box.
        iou_threshold: In [0, 1].

    Returns:
        (B, N) booleans.
    """
    number = scores.shape[1]
    flat = functional.pad(scores.flatten(), (0, SPARE))
    present = (flat >= 0).nonzero().squeeze(1)
    # Items lie apart from each other. In double precision that changes no overlap.
    some = functional.pad(boxes.flatten(0, 1), (0, 0, 0, SPARE))[present].double()
    limit = boxes.masked_fill((scores < 0)[..., None], 0).abs().amax().double()
    some = some + ((present // number) * (2 * limit + 1))[:, None]
    best = torch.ops.torchvision.nms(some, flat[present].double(), iou_threshold)
    kept = torch.zeros_like(flat, dtype=torch.bool)
    return kept.index_fill(0, present[best], 1)[:-SPARE].view_as(scores)


LIB.impl('keep', keep_reference, 'CompositeExplicitAutograd')
LIB.impl('keep', lambda boxes, scores, _: torch.empty_like(scores, dtype=torch.bool), 'Meta')
KEEP = torch.ops.mmlocalattn_export.keep.default
_as_operator = False


@contextlib.contextmanager
def as_operator() -> Iterator[None]:
    """Let a graph call :data:`KEEP`, which ONNX has an operator for: it takes a batch.

    Otherwise a graph holds what is inside. So files of other formats need torchvision alone.
    """
    global _as_operator
    _as_operator = True
    try:
        yield
    finally:
        _as_operator = False


def suppress(nms: NMS, boxes: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """The scores of what remains, as ``mmcv.ops.batched_nms`` keeps it, and -1 for the rest.

    Args:
        nms: Of the ``test_cfg``.
        boxes: (B, N, 4).
        scores: (B, N), below 0 where there is no box.
        groups: (B, N) integers; boxes of different groups do not suppress each other.

    Returns:
        (B, N).
    """
    if nms.iou_threshold is None:
        return scores
    if not nms.class_agnostic:
        # The same sum as mmcv's, so that it is rounded alike.
        limit = boxes.masked_fill((scores < 0)[..., None], 0).amax((1, 2))[:, None]
        boxes = boxes + (groups.to(boxes) * (limit + 1))[..., None]
    keep = KEEP if _as_operator else keep_reference
    return scores.masked_fill(~keep(boxes, scores, nms.iou_threshold), ABSENT)


def best(scores: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The highest scores and their places, also where there are fewer than asked for.

    Args:
        scores: (B, N), N >= 1.
        number: How many, K.

    Returns:
        Scores (B, K) from high to low, and integers (B, K) in [0, N).
    """
    # Padded in any case, because N may be a symbol on which a graph must not branch.
    padded = functional.pad(scores, (0, number), value=ABSENT)
    top, places = padded.topk(number)
    return top, places.clamp(max=scores.shape[1] - 1)


def take(values: Tensor, places: Tensor) -> Tensor:
    """Rows of each item: (B, N, ...) at (B, K) to (B, K, ...)."""
    index = places.view(*places.shape, *(1,) * (values.dim() - 2))
    return values.gather(1, index.expand(*places.shape, *values.shape[2:]))
