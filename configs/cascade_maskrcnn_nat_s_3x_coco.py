# NAT-S, with the released recipe.
# Published: 52.0 box AP, 44.9 mask AP (COCO table "Cascade Mask R-CNN").
# Weights: https://shi-labs.com/projects/nat/checkpoints/DET/nat_small_cascademaskrcnn.pth
_base_ = './cascade_maskrcnn_nat_m_3x_coco.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.3),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
