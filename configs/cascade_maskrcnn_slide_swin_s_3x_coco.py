# Slide-Swin-S. Paper, COCO table "Cascade Mask R-CNN": 52.5 box AP, 45.4 mask AP. Swin-S recipe.
_base_ = './cascade_maskrcnn_slide_swin_t_3x_coco.py'

model = dict(backbone=dict(arch='small'))
