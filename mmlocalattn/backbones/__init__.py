"""Pyramid backbones, one family per file."""

from mmengine.analysis import complexity_analysis

from mmlocalattn.backbones.nat import NAT, DiNAT
from mmlocalattn.backbones.qna_vit import QnAViT
from mmlocalattn.backbones.sasa_resnet import SASAResNet
from mmlocalattn.backbones.slide_transformer import (
    SlideCSwin,
    SlideNAT,
    SlidePVT,
    SlidePVTv2,
    SlideSwin,
)
from mmlocalattn.backbones.ssvit import SSViT
from mmlocalattn.ops.flops import JIT_HANDLES

__all__ = [
    'NAT',
    'DiNAT',
    'QnAViT',
    'SASAResNet',
    'SSViT',
    'SlideCSwin',
    'SlideNAT',
    'SlidePVT',
    'SlidePVTv2',
    'SlideSwin',
]

# Otherwise MMEngine's get_model_complexity_info counts our operators as nothing. A private table.
getattr(complexity_analysis, '_DEFAULT_SUPPORTED_FLOP_OPS', {}).update(JIT_HANDLES)
