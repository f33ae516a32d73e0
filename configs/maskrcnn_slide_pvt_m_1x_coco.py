# Slide-PVT-M. Paper, COCO table "Mask R-CNN": 44.4 box AP, 40.8 mask AP. PVT-M recipe.
_base_ = './maskrcnn_slide_pvt_t_1x_coco.py'

model = dict(backbone=dict(arch='medium', drop_path_rate=0.0))
