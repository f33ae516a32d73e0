# Slide-PVTv2-B1. Paper: Slide-Transformer (arXiv 2304.04237), COCO table "Mask R-CNN": B1 42.6 box
# AP, 39.7 mask AP. PVTv2's recipe, which is that of PVT.
_base_ = './maskrcnn_slide_pvt_t_1x_coco.py'

model = dict(backbone=dict(type='mmlocalattn.SlidePVTv2', arch='b1'))
