"""Classification tails."""

from mmlocalattn.heads.ssvit_neck import SSViTNeck

__all__ = ['SSViTNeck']
