# DiNAT-B, with the released recipe.
# Published: 53.4 box AP, 46.2 mask AP (COCO table "Cascade Mask R-CNN").
# Weights: https://shi-labs.com/projects/dinat/checkpoints/coco/cascadedmaskrcnn_dinat_base.pth
_base_ = './cascade_maskrcnn_dinat_m_3x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.6),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(optimizer=dict(lr=7.5e-5))
