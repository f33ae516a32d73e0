# SSViT-B. Paper, COCO table "Mask R-CNN 1x": 51.0 box AP, 45.4 mask AP. RMT-B recipe.
_base_ = './maskrcnn_ssvit_t_1x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4),
    neck=dict(in_channels=[80, 160, 320, 512]),
)
