# Slide-PVTv2-B2, with the recipe of PVTv2-B2.
# Published: 46.0 box AP, 41.9 mask AP (COCO table "Mask R-CNN").
_base_ = './maskrcnn_slide_pvtv2_b1_1x_coco.py'

model = dict(backbone=dict(arch='b2'))
