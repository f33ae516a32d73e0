"""How far the predictions of an exported file agree with those of its model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LEAST_SCORE = 0.05
"""Of the boxes that are counted; weaker ones may serve as partners."""

TIE = 1e-6
"""Up to this, two scores are equal: files agree with their models so far."""


@dataclass
class Agreement:
    """What two models that predict for the same images have in common.

    Attributes:
        what: That is counted: boxes, pixels or images.
        total: How many of these there are in both.
        alike: How many of them have a partner, or the same label.
        ties: How many boxes have the score of another one of their image, so that which of them is
            kept is left to rounding.
        largest: Differences of those that are alike: of a corner in pixels, of a score, and of a
            mask as the share of its pixels.
    """

    what: str
    total: int = 0
    alike: int = 0
    ties: int = 0
    largest: dict[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Of all that is counted, what is alike; NaN of nothing."""
        return self.alike / self.total if self.total else float('nan')

    def add(self, total: int, alike: int, ties: int = 0, **differences: float) -> None:
        """Count one more image."""
        self.total += total
        self.alike += alike
        self.ties += ties
        for name, value in differences.items():
            self.largest[name] = max(self.largest.get(name, 0.0), value)


def compare(agreement: Agreement, model: Mapping, file: Mapping, min_iou: float) -> None:
    """Count the predictions for one image.

    Args:
        agreement: Of all images.
        model: The model's sample, as a dict.
        file: That of the file.
        min_iou: Of two boxes that are taken for the same.
    """
    if 'pred_instances' in model:
        found, again = (dict(sample['pred_instances'].items()) for sample in (model, file))
        agreement.add(**_compare_boxes(found, again, min_iou))
    elif 'pred_sem_seg' in model:
        maps = [sample['pred_sem_seg']['data'].cpu() for sample in (model, file)]
        agreement.add(maps[0].numel(), int((maps[0] == maps[1]).sum()))
    else:
        labels = [sample['pred_label'].cpu() for sample in (model, file)]
        scores = [sample['pred_score'].cpu() for sample in (model, file)]
        difference = (scores[0] - scores[1]).abs().max().item()
        agreement.add(1, int(torch.equal(labels[0], labels[1])), score=difference)


def counted(scope: str) -> str:
    """What an :class:`Agreement` counts for models of a toolbox."""
    return {'mmdet': 'boxes', 'mmseg': 'pixels'}.get(scope, 'images')


def _compare_boxes(model: Mapping, file: Mapping, min_iou: float) -> dict[str, Any]:
    pairs = match_boxes(model, file, min_iou)
    strong = [(found['scores'] >= LEAST_SCORE).cpu() for found in (model, file)]
    alike = sum(int(strong[0][i]) + int(strong[1][j]) for i, j in pairs)
    counts: dict[str, Any] = dict(total=int(strong[0].sum() + strong[1].sum()), alike=alike)
    counts['ties'] = sum(
        tied(found['scores'].cpu()[kept]) for found, kept in zip((model, file), strong)
    )
    counted_pairs = [(i, j) for i, j in pairs if strong[0][i] or strong[1][j]]
    if counted_pairs:
        first, second = (torch.tensor(indices) for indices in zip(*counted_pairs))
        for name, key in (('corner', 'bboxes'), ('score', 'scores')):
            difference = model[key].cpu()[first] - file[key].cpu()[second]
            counts[name] = difference.abs().max().item()
        if 'masks' in model and 'masks' in file:
            masks = [torch.as_tensor(part['masks']).cpu() for part in (model, file)]
            counts['mask'] = _mask_difference(masks[0][first], masks[1][second])
    return counts


def tied(scores: Tensor) -> int:
    """How many of some scores another one has too, up to rounding."""
    distances = (scores[:, None] - scores[None]).abs().fill_diagonal_(torch.inf)
    return int((distances <= TIE).any(1).sum())


def ties_in_words(number: int, total: int) -> str:
    """What is said about ties where two models differ; nothing if there are few."""
    if number < 0.02 * total:
        return ''
    return (
        f'; {number} of {total} boxes have the score of another one of their image up to {TIE:g}, '
        'and which of such boxes is kept is left to rounding: a detector whose scores are '
        'saturated cannot be compared'
    )


def _mask_difference(a: Tensor, b: Tensor) -> float:
    """The largest share of pixels of two masks that only one of them has, of (N, H, W) masks."""
    a, b = a.bool().flatten(1), b.bool().flatten(1)
    different, either = (a ^ b).sum(1), (a | b).sum(1)
    return (different / either.clamp(min=1)).max().item()


def match_boxes(model: Mapping, file: Mapping, min_iou: float) -> Sequence[tuple[int, int]]:
    """Pair the boxes of one image one to one, those first that overlap most.

    Args:
        model: ``bboxes`` (N, 4) as x1, y1, x2, y2, ``scores`` (N,) and ``labels`` (N,).
        file: The same of the other.
        min_iou: Least overlap of a pair, whose labels are equal.

    Returns:
        Indices into the first and the second. Of boxes that overlap alike, as copies of one do,
        those of nearest scores are a pair.
    """
    overlaps = box_ious(model['bboxes'].cpu(), file['bboxes'].cpu())
    overlaps[model['labels'].cpu()[:, None] != file['labels'].cpu()[None]] = 0
    distances = (model['scores'].cpu()[:, None] - file['scores'].cpu()[None]).abs()
    candidates = sorted(
        (-round(overlaps[i, j].item(), 3), distances[i, j].item(), i, j)
        for i, j in torch.nonzero(overlaps >= min_iou).tolist()
    )
    first, second, pairs = set(), set(), []
    for *_, i, j in candidates:
        if i not in first and j not in second:
            first.add(i)
            second.add(j)
            pairs.append((i, j))
    return pairs


def box_ious(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) intersection over union of boxes (N, 4) and (M, 4), x1, y1, x2, y2.

    Boxes with the same corners, up to a hundredth of a pixel, overlap by 1, also without an area.
    """
    corner = torch.maximum(a[:, None, :2], b[None, :, :2])
    opposite = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = (opposite - corner).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - intersection
    same = (a[:, None] - b[None]).abs().amax(-1) <= 0.01
    return torch.where(same, torch.ones_like(union), intersection / union.clamp(min=1e-12))
