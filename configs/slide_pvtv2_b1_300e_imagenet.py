# Slide-PVTv2-B1, with PVTv2's recipe, which is that of PVT.
# Published: 79.5 top-1 (Slide-Transformer, arXiv 2304.04237, ImageNet table).
_base_ = './slide_pvt_t_300e_imagenet.py'

model = dict(backbone=dict(type='mmlocalattn.SlidePVTv2', arch='b1', output_norm=False))
