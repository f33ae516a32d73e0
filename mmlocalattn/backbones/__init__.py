"""Pyramid backbones, one family per file."""

from mmlocalattn.backbones.ssvit import SSViT

__all__ = ['SSViT']
