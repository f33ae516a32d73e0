# Slide-PVT-S. Paper, ADE20K table "S-FPN": 42.47 mIoU. PVT-S recipe.
_base_ = './semfpn_slide_pvt_t_80k_ade20k.py'

model = dict(backbone=dict(arch='small'))
