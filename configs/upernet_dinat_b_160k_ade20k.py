# DiNAT-B, with the released recipe.
# Published: 49.6 mIoU, 50.4 multi-scale mIoU (ADE20K table "UPerNet").
# Weights: https://shi-labs.com/projects/dinat/checkpoints/ade20k/upernet_dinat_base.pth
_base_ = './upernet_dinat_m_160k_ade20k.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
