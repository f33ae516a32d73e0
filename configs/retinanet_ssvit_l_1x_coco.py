# SSViT-L, with the recipe of RMT-L.
# Published: 50.0 box AP (COCO table "RetinaNet 1x").
_base_ = './retinanet_ssvit_t_1x_coco.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.5),
    neck=dict(in_channels=[224, 448, 640]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
