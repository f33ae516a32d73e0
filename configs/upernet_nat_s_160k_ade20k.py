# NAT-S, with the released recipe.
# Published: 48.0 mIoU, 49.5 multi-scale mIoU (ADE20K table "UPerNet").
# Weights: https://shi-labs.com/projects/nat/checkpoints/SEG/nat_small_upernet.pth
_base_ = './upernet_nat_m_160k_ade20k.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.5),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
