# Slide-NAT-M. Paper: Slide-Transformer (arXiv 2304.04237), 82.4 top-1 in a plot, not in the
# ImageNet table. NAT-M recipe.
_base_ = './nat_m_300e_imagenet.py'

model = dict(backbone=dict(type='mmlocalattn.SlideNAT'))
