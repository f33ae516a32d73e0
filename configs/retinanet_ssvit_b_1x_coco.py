# SSViT-B, with the recipe of RMT-B.
# Published: 49.0 box AP (COCO table "RetinaNet 1x").
_base_ = './retinanet_ssvit_t_1x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4),
    neck=dict(in_channels=[160, 320, 512]),
)
