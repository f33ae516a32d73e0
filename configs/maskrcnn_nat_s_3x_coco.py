# NAT-S, with the released recipe.
# Published: 48.4 box AP, 43.2 mask AP (COCO table "Mask R-CNN").
# Weights: https://shi-labs.com/projects/nat/checkpoints/DET/nat_small_maskrcnn.pth
_base_ = './maskrcnn_nat_m_3x_coco.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.35),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
