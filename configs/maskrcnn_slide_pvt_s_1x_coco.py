# Slide-PVT-S. Paper, COCO table "Mask R-CNN": 42.8 box AP, 40.1 mask AP. PVT-S recipe.
_base_ = './maskrcnn_slide_pvt_t_1x_coco.py'

model = dict(backbone=dict(arch='small'))
