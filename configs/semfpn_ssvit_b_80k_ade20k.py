# SSViT-B, with the recipe of RMT-B.
# Published: 51.0 mIoU (ADE20K table "Semantic FPN").
_base_ = './semfpn_ssvit_t_80k_ade20k.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4),
    neck=dict(in_channels=[80, 160, 320, 512]),
)
