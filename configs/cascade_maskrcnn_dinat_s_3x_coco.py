# DiNAT-S, with the released recipe.
# Published: 52.9 box AP, 45.8 mask AP (COCO table "Cascade Mask R-CNN").
# Weights: https://shi-labs.com/projects/dinat/checkpoints/coco/cascadedmaskrcnn_dinat_small.pth
_base_ = './cascade_maskrcnn_dinat_m_3x_coco.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.5),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
