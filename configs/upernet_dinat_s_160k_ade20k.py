# DiNAT-S, with the released recipe.
# Published: 48.9 mIoU, 49.9 multi-scale mIoU (ADE20K table "UPerNet").
# Weights: https://shi-labs.com/projects/dinat/checkpoints/ade20k/upernet_dinat_small.pth
_base_ = './upernet_dinat_m_160k_ade20k.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.5),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
