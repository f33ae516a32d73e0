# SSViT-B, with the recipe of RMT-B.
# Published: 52.6 box AP, 46.4 mask AP (COCO table "Mask R-CNN 3x").
_base_ = './maskrcnn_ssvit_s_3x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4),
    neck=dict(in_channels=[80, 160, 320, 512]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
