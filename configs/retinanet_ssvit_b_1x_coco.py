# SSViT-B. Paper, COCO table "RetinaNet 1x": 49.0 AP. RMT-B recipe.
_base_ = './retinanet_ssvit_t_1x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4),
    neck=dict(in_channels=[160, 320, 512]),
)
