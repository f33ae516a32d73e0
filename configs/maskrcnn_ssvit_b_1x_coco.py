# SSViT-B, with the recipe of RMT-B.
# Published: 51.0 box AP, 45.4 mask AP (COCO table "Mask R-CNN 1x").
_base_ = './maskrcnn_ssvit_t_1x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4),
    neck=dict(in_channels=[80, 160, 320, 512]),
)
