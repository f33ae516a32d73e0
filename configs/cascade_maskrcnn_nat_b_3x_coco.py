# NAT-B, with the released recipe.
# Published: 52.3 box AP, 45.1 mask AP (COCO table "Cascade Mask R-CNN").
# Weights: https://shi-labs.com/projects/nat/checkpoints/DET/nat_base_cascademaskrcnn.pth
_base_ = './cascade_maskrcnn_nat_m_3x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
