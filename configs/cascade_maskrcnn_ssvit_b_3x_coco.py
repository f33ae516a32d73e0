# SSViT-B, with the recipe of RMT-B.
# Published: 54.9 box AP, 47.6 mask AP (COCO table "Cascade Mask R-CNN 3x").
_base_ = './cascade_maskrcnn_ssvit_s_3x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4),
    neck=dict(in_channels=[80, 160, 320, 512]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
