# Slide-PVTv2-B1. Paper: Slide-Transformer (arXiv 2304.04237), ImageNet table: B1 79.5 top-1.
# PVTv2's recipe, which is that of PVT.
_base_ = './slide_pvt_t_300e_imagenet.py'

model = dict(backbone=dict(type='mmlocalattn.SlidePVTv2', arch='b1', output_norm=False))
