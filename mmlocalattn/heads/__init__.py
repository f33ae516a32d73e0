"""Classification tails and necks."""

from mmlocalattn.heads.qna_fpn import QnAFPN
from mmlocalattn.heads.ssvit_neck import SSViTNeck

__all__ = ['QnAFPN', 'SSViTNeck']
