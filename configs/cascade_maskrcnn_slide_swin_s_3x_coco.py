# Slide-Swin-S, with the recipe of Swin-S.
# Published: 52.5 box AP, 45.4 mask AP (COCO table "Cascade Mask R-CNN").
_base_ = './cascade_maskrcnn_slide_swin_t_3x_coco.py'

model = dict(backbone=dict(arch='small'))
