# Slide-PVTv2-B1, with PVTv2's recipe, which is that of PVT.
# Published: 42.6 box AP, 39.7 mask AP (Slide-Transformer, arXiv 2304.04237, COCO table "Mask
# R-CNN").
_base_ = './maskrcnn_slide_pvt_t_1x_coco.py'

model = dict(backbone=dict(type='mmlocalattn.SlidePVTv2', arch='b1'))
