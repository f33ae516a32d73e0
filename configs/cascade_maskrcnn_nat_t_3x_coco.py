# NAT-T, with the released recipe.
# Published: 51.4 box AP, 44.5 mask AP (COCO table "Cascade Mask R-CNN").
# Weights: https://shi-labs.com/projects/nat/checkpoints/DET/nat_tiny_cascademaskrcnn.pth
_base_ = './cascade_maskrcnn_nat_m_3x_coco.py'

model = dict(backbone=dict(arch='tiny', drop_path_rate=0.3))
