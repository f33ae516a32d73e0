"""Necks and heads of classifiers and detectors."""

from typing import Any

from torch import nn

from mmlocalattn.heads.attention_fpn import AttentionFPN
from mmlocalattn.heads.qna_fpn import QnAFPN
from mmlocalattn.heads.ssvit_neck import SSViTNeck
from mmlocalattn.registry import MODELS

__all__ = ['AttentionFPN', 'QnAFPN', 'SSViTNeck']


@MODELS.register_module(name='AttentionRetinaHead')
def _attention_retina_head(**options: Any) -> nn.Module:
    """Build the head. Only who asks for it needs mmdet, and waits for its import."""
    from mmlocalattn.heads.attention_retina_head import AttentionRetinaHead

    return AttentionRetinaHead(**options)


@MODELS.register_module(name='DetTTA')
def _det_tta(**options: Any) -> nn.Module:
    """Build what merges detections, which is a class of mmdet's."""
    from mmlocalattn.heads.det_tta import DetTTA

    return DetTTA(**options)
