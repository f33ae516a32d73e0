"""Whole detectors of mmdet: from an image to boxes, scores, labels and masks."""

from typing import Any

from mmlocalattn.export.detectors.detector import Detector

__all__ = ['Detector', 'whole_detector']

_POST = ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
"""What a dense head does with its maps."""


def whole_detector(model: Any) -> Detector:
    """The module that takes an image and gives detections.

    Args:
        model: A detector of mmdet.

    Raises:
        ValueError: If part of it cannot leave Python, with the name of its class.
    """
    try:
        return _class_of(model)(model).eval()
    except ValueError as error:
        raise ValueError(
            f'{type(model).__name__} cannot be exported whole: {error}; '
            '--part neck exports its backbone and neck'
        ) from error


def _class_of(model: Any) -> type[Detector]:
    from mmdet.models import detectors as mm

    from mmlocalattn.export.detectors.dense import DenseDetector
    from mmlocalattn.export.detectors.rtmdet_ins import RTMDetIns
    from mmlocalattn.export.detectors.two_stage import TwoStageDetector

    if _does_as(model, mm.TwoStageDetector, 'predict', 'extract_feat'):
        _check_roi_head(model)
        return TwoStageDetector
    if isinstance(model, mm.DetectionTransformer):
        return _class_of_transformer(model)
    if _does_as(model, mm.SingleStageDetector, 'predict', 'extract_feat'):
        if _is_rtmdet_ins(model.bbox_head):
            return RTMDetIns
        _check_dense_head(model.bbox_head)
        return DenseDetector
    raise ValueError(f'there is no form of {type(model).__name__}')


def _class_of_transformer(model: Any) -> type[Detector]:
    from mmdet.models import dense_heads as heads
    from mmdet.models import detectors as mm

    from mmlocalattn.export.detectors.transformer import DETR, DeformableDETR

    steps = ('pre_transformer', 'forward_encoder', 'pre_decoder', 'forward_decoder', 'predict')
    if not _does_as(model.bbox_head, heads.DETRHead, '_predict_by_feat_single'):
        raise ValueError(f'there is no form of its {type(model.bbox_head).__name__}')
    if _does_as(model, mm.DETR, *steps):
        return DETR
    if _does_as(model, mm.DINO, *steps) or _does_as(model, mm.DeformableDETR, *steps):
        return DeformableDETR
    raise ValueError(f'there is no form of {type(model).__name__}')


def _is_rtmdet_ins(head: Any) -> bool:
    from mmdet.models.dense_heads import RTMDetInsHead

    names = ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_mask_post_process')
    return _does_as(head, RTMDetInsHead, *names, '_mask_predict_by_feat_single')


def _check_dense_head(head: Any) -> None:
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    if not _does_as(head, BaseDenseHead, *_POST):
        raise ValueError(f'there is no form of its {type(head).__name__}')


def _check_roi_head(model: Any) -> None:
    from mmdet.models.dense_heads import RPNHead
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead

    if not _does_as(getattr(model, 'rpn_head', None), RPNHead, *_POST):
        raise ValueError(f'there is no form of its {type(model.rpn_head).__name__}')
    names = ('predict', 'predict_bbox', 'predict_mask', '_bbox_forward', '_mask_forward')
    head = model.roi_head
    is_known = _does_as(head, CascadeRoIHead, *names, '_refine_roi') or _does_as(
        head, StandardRoIHead, *names
    )
    if not is_known:
        raise ValueError(f'there is no form of its {type(head).__name__}')


def _does_as(instance: Any, base: type, *methods: str) -> bool:
    """Whether an object is of a class and does not override methods of it."""
    return isinstance(instance, base) and all(
        getattr(type(instance), name) is getattr(base, name) for name in methods
    )
