# NAT-T, with the released recipe.
# Published: 47.1 mIoU, 48.4 multi-scale mIoU (ADE20K table "UPerNet").
# Weights: https://shi-labs.com/projects/nat/checkpoints/SEG/nat_tiny_upernet.pth
_base_ = './upernet_nat_m_160k_ade20k.py'

model = dict(backbone=dict(arch='tiny', drop_path_rate=0.3))
