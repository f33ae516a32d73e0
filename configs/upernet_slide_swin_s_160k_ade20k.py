# Slide-Swin-S. Paper, ADE20K table "UPerNet": 48.46 mIoU. Swin-S recipe.
_base_ = './upernet_slide_swin_t_160k_ade20k.py'

model = dict(backbone=dict(arch='small'))
