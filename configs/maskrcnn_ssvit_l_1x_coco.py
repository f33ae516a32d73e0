# SSViT-L, with the recipe of RMT-L.
# Published: 51.6 box AP, 46.0 mask AP (COCO table "Mask R-CNN 1x").
_base_ = './maskrcnn_ssvit_t_1x_coco.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.5),
    neck=dict(in_channels=[112, 224, 448, 640]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
