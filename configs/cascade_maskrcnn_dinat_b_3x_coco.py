# DiNAT-B. Paper, COCO table "Cascade Mask R-CNN": 53.4 box AP, 46.2 mask AP. Released recipe.
_base_ = './cascade_maskrcnn_dinat_m_3x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.6),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(optimizer=dict(lr=7.5e-5))
