# SSViT-S, with the recipe of RMT-S.
# Published: 49.6 mIoU (ADE20K table "Semantic FPN").
_base_ = './semfpn_ssvit_t_80k_ade20k.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))
