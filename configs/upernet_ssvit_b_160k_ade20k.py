# SSViT-B, with the recipe of RMT-B.
# Published: 52.2 mIoU (ADE20K table "UPerNet").
_base_ = './upernet_ssvit_s_160k_ade20k.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4),
    decode_head=dict(in_channels=[80, 160, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
