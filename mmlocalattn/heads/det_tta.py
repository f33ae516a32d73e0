"""Merging the detections of one image that was tested flipped and at several scales."""

from collections.abc import Sequence

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData


class DetTTA(DetTTAModel):
    """mmdet's model of this kind, with the masks of the boxes that remain.

    A mask is that of its box, from the view in which it was found; none are averaged.

    Args:
        module: The detector.
        tta_cfg: ``nms``, mmcv's, among the boxes of all views, and ``max_per_img``.
        data_preprocessor: Of the detector, if that has none.
    """

    def _merge_single_sample(self, data_samples: Sequence[DetDataSample]) -> DetDataSample:
        """Merge what was found in each view, all in the frame of the image as it was loaded."""
        views = [sample.pred_instances for sample in data_samples]
        boxes, scores = self.merge_aug_bboxes(
            [view.bboxes for view in views],
            [view.scores for view in views],
            [sample.metainfo for sample in data_samples],
        )
        if not len(boxes):
            return data_samples[0]
        labels = torch.cat([view.labels for view in views])
        merged, kept = batched_nms(boxes, scores, labels, self.tta_cfg.nms)
        kept = kept[: self.tta_cfg.max_per_img]
        result = data_samples[0]
        result.pred_instances = InstanceData(
            bboxes=merged[: len(kept), :4], scores=merged[: len(kept), 4], labels=labels[kept]
        )
        if 'masks' in views[0]:
            masks = [_flip_back(view.masks, sample) for view, sample in zip(views, data_samples)]
            result.pred_instances.masks = torch.cat(masks)[kept]
        return result


def _flip_back(masks: torch.Tensor, sample: DetDataSample) -> torch.Tensor:
    """Masks (N, H, W) of a view in the frame of the image."""
    if not sample.flip:
        return masks
    axes = dict(horizontal=[-1], vertical=[-2], diagonal=[-2, -1])[sample.flip_direction]
    return masks.flip(axes)
