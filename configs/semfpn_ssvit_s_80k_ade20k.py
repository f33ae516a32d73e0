# SSViT-S. Paper, ADE20K table "Semantic FPN": 49.6 mIoU. RMT-S recipe.
_base_ = './semfpn_ssvit_t_80k_ade20k.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))
