# NAT-B, with the released recipe.
# Published: 48.5 mIoU, 49.7 multi-scale mIoU (ADE20K table "UPerNet").
# Weights: https://shi-labs.com/projects/nat/checkpoints/SEG/nat_base_upernet.pth
_base_ = './upernet_nat_m_160k_ade20k.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
