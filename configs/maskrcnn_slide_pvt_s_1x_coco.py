# Slide-PVT-S, with the recipe of PVT-S.
# Published: 42.8 box AP, 40.1 mask AP (COCO table "Mask R-CNN").
_base_ = './maskrcnn_slide_pvt_t_1x_coco.py'

model = dict(backbone=dict(arch='small'))
