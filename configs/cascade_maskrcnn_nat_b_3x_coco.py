# NAT-B. Paper, COCO table "Cascade Mask R-CNN": 52.3 box AP, 45.1 mask AP. Released recipe.
_base_ = './cascade_maskrcnn_nat_m_3x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
