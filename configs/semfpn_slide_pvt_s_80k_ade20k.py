# Slide-PVT-S, with the recipe of PVT-S.
# Published: 42.47 mIoU (ADE20K table "S-FPN").
_base_ = './semfpn_slide_pvt_t_80k_ade20k.py'

model = dict(backbone=dict(arch='small'))
