"""Heads that predict at every place of the maps: RetinaNet, FCOS, ATSS, RTMDet, and the RPN."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmlocalattn.export.detectors.detector import (
    Detector,
    check_coder,
    decoded,
    detections,
    large_enough,
)
from mmlocalattn.export.detectors.nms import ABSENT, NMS, best, suppress, take


class DenseDetector(Detector):
    """A ``SingleStageDetector`` whose head does what mmdet's ``BaseDenseHead`` does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.post = DensePost(self.model.bbox_head)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """As for :class:`Detector`."""
        head = self.model.bbox_head
        return self.post(head(self.model.extract_feat(image)), image)


class DensePost:
    """From the maps of a head to detections.

    Args:
        head: A ``BaseDenseHead`` with its own ``test_cfg``.

    Raises:
        ValueError: If part of it has no fixed number of outputs or is unknown.
    """

    def __init__(self, head: Any) -> None:
        cfg = head.test_cfg
        check_coder(head.bbox_coder)
        self.head = head
        self.nms = NMS.of(cfg.get('nms'))
        self.nms_pre = positive(cfg, 'nms_pre')
        self.max_per_img = positive(cfg, 'max_per_img')
        self.score_thr = cfg.get('score_thr', 0)
        self.min_size = cfg.get('min_bbox_size', -1)

    def __call__(self, outputs: Sequence, image: Tensor) -> tuple[Tensor, ...]:
        """Scores, boxes and, where there are any, factors of the scores; each of all levels."""
        boxes, scores, labels, _ = self.candidates(outputs, image)
        return detections(self.nms, boxes, scores, labels, self.max_per_img)[:3]

    def candidates(
        self, outputs: Sequence, image: Tensor, more: Sequence[Tensor] = (), **of_priors: bool
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """The best of each level.

        Args:
            outputs: Of the head: scores, boxes and perhaps factors, of each level (B, C, h, w).
            image: (B, C, H, W).
            more: Maps (B, D, h, w) of each level, to be taken where candidates are.
            of_priors: For the ``prior_generator``.

        Returns:
            Boxes (B, N, 4), scores (B, N), labels (B, N), and with ``more`` what was taken
            (B, N, D) and the priors (B, N, 4).
        """
        head = self.head
        shapes = [level.shape[2:] for level in outputs[0]]
        priors = head.prior_generator.grid_priors(
            shapes, dtype=image.dtype, device=image.device, **of_priors
        )
        factors = outputs[2] if len(outputs) > 2 and outputs[2] is not None else None
        levels = []
        for index, (scores, deltas) in enumerate(zip(outputs[0], outputs[1])):
            top, labels, places = self._best_of(activated(head, scores))
            if factors is not None:
                factor = take(rows(factors[index], 1), places)[..., 0].sigmoid()
                top = torch.where(top < 0, top, top * factor)
            taken = [priors[index][places], take(rows(deltas, 4), places), top, labels]
            if more:
                taken.append(take(rows(more[index], more[index].shape[1]), places))
            levels.append(taken)
        prior, delta, score, label, *rest = (torch.cat(parts, 1) for parts in zip(*levels))
        boxes = decoded(head.bbox_coder, prior[..., : 2 if more else None], delta, image)
        score = large_enough(boxes, score, self.min_size)
        return boxes, score, label, (rest[0], prior) if more else ()

    def _best_of(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, labels and places (B, nms_pre) of the best pairs of a place and a class.

        Among the best n pairs are only places that are among the n with the best classes.
        """
        scores = scores.masked_fill(~(scores > self.score_thr), ABSENT)  # (B, places, classes)
        top, places = best(scores.amax(2), self.nms_pre)
        classes = scores.shape[2]
        scores = take(scores, places).masked_fill((top < 0)[..., None], ABSENT)
        top, pairs = scores.flatten(1).topk(self.nms_pre)
        return top, pairs % classes, places.gather(1, pairs // classes)


class Proposals:
    """From the maps of an RPN to proposals.

    Args:
        head: mmdet's ``RPNHead`` with its own ``test_cfg``.

    Raises:
        ValueError: If part of it is unknown.
    """

    def __init__(self, head: Any) -> None:
        cfg = head.test_cfg
        check_coder(head.bbox_coder)
        self.head = head
        self.nms = NMS.of(cfg.get('nms'))
        self.nms_pre = positive(cfg, 'nms_pre')
        self.number = positive(cfg, 'max_per_img')
        self.min_size = cfg.get('min_bbox_size', -1)

    def __call__(self, maps: Sequence[Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (B, K, 4), and scores (B, K) that are below 0 where there is no box."""
        head = self.head
        outputs = head(maps)
        shapes = [level.shape[2:] for level in outputs[0]]
        priors = head.prior_generator.grid_priors(shapes, dtype=image.dtype, device=image.device)
        levels = []
        for index, (scores, deltas) in enumerate(zip(*outputs)):
            top, places = best(activated(head, scores)[..., 0], self.nms_pre)
            level = torch.full_like(places, index)
            levels.append([priors[index][places], take(rows(deltas, 4), places), top, level])
        prior, delta, score, level = (torch.cat(parts, 1) for parts in zip(*levels))
        boxes = decoded(head.bbox_coder, prior, delta, image)
        score = suppress(self.nms, boxes, large_enough(boxes, score, self.min_size), level)
        top, places = best(score, self.number)
        return take(boxes, places), top


def positive(cfg: Any, key: str) -> int:
    """A number of a ``test_cfg`` that must be there for the file to have a fixed size.

    Raises:
        ValueError: If it is not.
    """
    value = cfg.get(key, -1)
    if value < 1:
        raise ValueError(f'its test_cfg has {key}={value}, a file needs a number')
    return value


def rows(level: Tensor, channels: int) -> Tensor:
    """(B, priors * channels, h, w) to (B, h * w * priors, channels)."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, channels)


def activated(head: Any, scores: Tensor) -> Tensor:
    """Scores of the classes (B, h * w * priors, classes), from logits (B, C, h, w)."""
    logits = rows(scores, head.cls_out_channels)
    if getattr(head.loss_cls, 'custom_cls_channels', False):
        return head.loss_cls.get_activation(logits)
    return logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[..., :-1]
