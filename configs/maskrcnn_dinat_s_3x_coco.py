# DiNAT-S, with the released recipe.
# Published: 49.3 box AP, 44.0 mask AP (COCO table "Mask R-CNN").
# Weights: https://shi-labs.com/projects/dinat/checkpoints/coco/maskrcnn_dinat_small.pth
_base_ = './maskrcnn_dinat_m_3x_coco.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.35),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
