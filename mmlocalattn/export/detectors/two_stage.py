"""Faster, Mask and Cascade R-CNN."""

from collections.abc import Sequence
from typing import Any

import torch
import torchvision.ops  # noqa: F401  registers torchvision::roi_align
from torch import Tensor, nn
from torch.nn import functional

from mmlocalattn.export.detectors.dense import Proposals, positive
from mmlocalattn.export.detectors.detector import Detector, check_coder, decoded, detections
from mmlocalattn.export.detectors.nms import ABSENT, NMS, SPARE, take

Maps = Sequence[Tensor]


class TwoStageDetector(Detector):
    """mmdet's ``TwoStageDetector`` with a ``StandardRoIHead`` or a ``CascadeRoIHead``.

    Masks (B, K, h, w) are in the frames of their boxes; those of a cascade are the mean over its
    stages.

    Raises:
        ValueError: If part of it is unknown.
    """

    mask_frame: str | None = None
    mask_threshold = 0.5

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        head, cfg = self.model.roi_head, self.model.roi_head.test_cfg
        self.proposals = Proposals(self.model.rpn_head)
        self.stages = [RoIStage(*parts) for parts in _stages(head)]
        for stage in self.stages:
            stage.check()
        self.nms = NMS.of(cfg.get('nms'))
        self.number = positive(cfg, 'max_per_img')
        self.score_thr = cfg.score_thr
        if head.with_mask:
            self.output_names = ('boxes', 'scores', 'labels', 'masks')
            self.mask_frame = 'box'
            self.mask_threshold = cfg.mask_thr_binary

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """As for :class:`Detector`."""
        maps = self.model.extract_feat(image)
        boxes, found = self.proposals(maps, image)
        boxes, scores = self._classified(maps, boxes, image)
        # (B, proposals, classes)
        scores = scores.masked_fill((found < 0)[..., None] | ~(scores > self.score_thr), ABSENT)
        labels = torch.arange(scores.shape[2], device=scores.device).expand_as(scores)
        boxes = boxes.expand(*scores.shape, 4).flatten(1, 2)
        *outputs, _ = detections(self.nms, boxes, scores.flatten(1), labels.flatten(1), self.number)
        if self.mask_frame is None:
            return tuple(outputs)
        return *outputs, self._masks(maps, outputs[0], outputs[2])

    def _classified(self, maps: Maps, boxes: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (B, K, classes or 1, 4) and scores (B, K, classes) of proposals (B, K, 4)."""
        logits = []
        for stage in self.stages[:-1]:
            stage_logits, deltas = stage.predict(maps, boxes)
            logits.append(stage_logits)
            # A stage hands on the box of its best class.
            scores = stage.custom(stage_logits) if stage.has_custom_activation else stage_logits
            label = scores[..., :-1].argmax(-1, keepdim=True)
            delta = (
                deltas if deltas.shape[2] == 1 else take(deltas.flatten(0, 1), label.flatten(0, 1))
            )
            boxes = decoded(stage.bbox_head.bbox_coder, boxes, delta.view(boxes.shape), image)
        stage = self.stages[-1]
        stage_logits, deltas = stage.predict(maps, boxes)
        logits.append(stage_logits)
        mean = sum(logits[1:], logits[0]) / len(logits)
        boxes = decoded(
            stage.bbox_head.bbox_coder, boxes[:, :, None].expand_as(deltas), deltas, image
        )
        return boxes, stage.activated(mean)

    def _masks(self, maps: Maps, boxes: Tensor, labels: Tensor) -> Tensor:
        masks = [stage.masks(maps, boxes, labels) for stage in self.stages]
        mean = sum(masks[1:], masks[0]) / len(masks)
        return mean.masked_fill((labels < 0)[..., None, None], 0)


def _stages(head: Any) -> list[tuple]:
    """Extractor and head of boxes, extractor and head of masks, and the shared head."""
    shared = head.shared_head if head.with_shared_head else None
    parts = [head.bbox_roi_extractor, head.bbox_head]
    if head.with_mask:
        parts += [head.mask_roi_extractor, head.mask_head]
    else:
        parts += [None, None]
    if isinstance(head.bbox_head, nn.ModuleList):
        parts = [part or [None] * head.num_stages for part in parts]
        return [(*stage, shared) for stage in zip(*parts, strict=True)]
    return [(*parts, shared)]


class RoIStage:
    """What the second stage, or one of a cascade, does with boxes.

    Args:
        bbox_extractor: Of mmdet.
        bbox_head: Of mmdet.
        mask_extractor: Of mmdet, or None.
        mask_head: Of mmdet, or None.
        shared_head: What both heads have before them, or None.
    """

    def __init__(
        self,
        bbox_extractor: Any,
        bbox_head: Any,
        mask_extractor: Any,
        mask_head: Any,
        shared_head: Any,
    ) -> None:
        self.bbox_extractor = bbox_extractor
        self.bbox_head = bbox_head
        self.mask_extractor = mask_extractor
        self.mask_head = mask_head
        self.shared_head = shared_head
        self.has_custom_activation = bool(getattr(bbox_head, 'custom_activation', False))

    def check(self) -> None:
        """Refuse parts that do other things.

        Raises:
            ValueError: With the name of the class.
        """
        from mmdet.models.roi_heads.bbox_heads.bbox_head import BBoxHead
        from mmdet.models.roi_heads.mask_heads.fcn_mask_head import FCNMaskHead
        from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

        for head, base in ((self.bbox_head, BBoxHead), (self.mask_head, FCNMaskHead)):
            for name in ('predict_by_feat', '_predict_by_feat_single'):
                if head is not None and getattr(type(head), name, None) is not getattr(base, name):
                    raise ValueError(f'there is no form of its {type(head).__name__}')
        if not self.bbox_head.with_cls or not self.bbox_head.with_reg:
            raise ValueError(f'its {type(self.bbox_head).__name__} predicts no classes or no boxes')
        check_coder(self.bbox_head.bbox_coder)
        for extractor in filter(None, (self.bbox_extractor, self.mask_extractor)):
            if type(extractor).forward is not SingleRoIExtractor.forward:
                raise ValueError(f'there is no form of its {type(extractor).__name__}')
            for layer in extractor.roi_layers:
                if type(layer).__name__ != 'RoIAlign' or layer.pool_mode != 'avg':
                    raise ValueError(f'there is no form of its {layer}')

    def predict(self, maps: Maps, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K, classes + 1) and deltas (B, K, classes or 1, 4) of boxes (B, K, 4)."""
        logits, deltas = self.bbox_head(self._features(self.bbox_extractor, maps, boxes))
        batch, number = boxes.shape[:2]
        return logits.view(batch, number, -1), deltas.view(batch, number, -1, 4)

    def activated(self, logits: Tensor) -> Tensor:
        """Scores of the classes, without that of the background."""
        if self.bbox_head.custom_cls_channels:
            return self.custom(logits)[..., :-1]
        return logits.softmax(-1)[..., :-1]

    def custom(self, logits: Tensor) -> Tensor:
        """Scores (B, K, classes + 1) as the loss of the head defines them."""
        scores = self.bbox_head.loss_cls.get_activation(logits.flatten(0, 1))
        return scores.view(*logits.shape[:2], -1)

    def masks(self, maps: Maps, boxes: Tensor, labels: Tensor) -> Tensor:
        """Probabilities (B, K, h, w) in boxes (B, K, 4) of classes (B, K)."""
        logits = self.mask_head(self._features(self.mask_extractor, maps, boxes))
        if not self.mask_head.class_agnostic:
            logits = take(logits, labels.clamp(min=0).flatten()[:, None])
        return logits.sigmoid().view(*labels.shape, *logits.shape[2:])

    def _features(self, extractor: Any, maps: Maps, boxes: Tensor) -> Tensor:
        pooled = pyramid_roi_align(extractor, maps[: extractor.num_inputs], boxes)
        return pooled if self.shared_head is None else self.shared_head(pooled)


def pyramid_roi_align(extractor: Any, maps: Maps, boxes: Tensor) -> Tensor:
    """Each box from the map that suits its size, as mmdet's ``SingleRoIExtractor`` does it.

    Args:
        extractor: That of mmdet.
        maps: (B, C, h, w) of each level.
        boxes: (B, K, 4).

    Returns:
        (B * K, C, pooled height, pooled width).
    """
    batch, number = boxes.shape[:2]
    item = torch.arange(batch, device=boxes.device).to(boxes)[:, None, None]
    rois = torch.cat((item.expand(batch, number, 1), boxes), 2).flatten(0, 1)
    if len(maps) == 1:
        return _roi_align(extractor.roi_layers[0], maps[0], rois)
    levels = extractor.map_roi_levels(rois, len(maps))
    rois = functional.pad(rois, (0, 0, 0, SPARE))
    pooled = maps[0].new_zeros(
        rois.shape[0], maps[0].shape[1], *extractor.roi_layers[0].output_size
    )
    for index, (layer, level) in enumerate(zip(extractor.roi_layers, maps)):
        places = functional.pad(levels == index, (0, SPARE), value=True).nonzero().squeeze(1)
        pooled = pooled.index_put((places,), _roi_align(layer, level, rois[places]))
    return pooled[:-SPARE]


def _roi_align(layer: Any, level: Tensor, rois: Tensor) -> Tensor:
    return torch.ops.torchvision.roi_align(
        level, rois, layer.spatial_scale, *layer.output_size, layer.sampling_ratio, layer.aligned
    )
