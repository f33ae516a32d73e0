# SSViT-L, with the recipe of RMT-L.
# Published: 51.5 mIoU (ADE20K table "Semantic FPN").
_base_ = './semfpn_ssvit_t_80k_ade20k.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.5),
    neck=dict(in_channels=[112, 224, 448, 640]),
)
