# Slide-Swin-B, with the recipe of Swin-B.
# Published: 52.7 box AP, 45.5 mask AP (COCO table "Cascade Mask R-CNN").
_base_ = './cascade_maskrcnn_slide_swin_t_3x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.3),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
