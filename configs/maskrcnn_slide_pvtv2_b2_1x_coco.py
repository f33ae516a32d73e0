# Slide-PVTv2-B2. Paper, COCO table "Mask R-CNN": 46.0 box AP, 41.9 mask AP. PVTv2-B2 recipe.
_base_ = './maskrcnn_slide_pvtv2_b1_1x_coco.py'

model = dict(backbone=dict(arch='b2'))
