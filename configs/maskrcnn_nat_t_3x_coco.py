# NAT-T, with the released recipe.
# Published: 47.7 box AP, 42.6 mask AP (COCO table "Mask R-CNN").
# Weights: https://shi-labs.com/projects/nat/checkpoints/DET/nat_tiny_maskrcnn.pth
_base_ = './maskrcnn_nat_m_3x_coco.py'

model = dict(backbone=dict(arch='tiny'))
