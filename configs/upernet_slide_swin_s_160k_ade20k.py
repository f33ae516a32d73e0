# Slide-Swin-S, with the recipe of Swin-S.
# Published: 48.46 mIoU (ADE20K table "UPerNet").
_base_ = './upernet_slide_swin_t_160k_ade20k.py'

model = dict(backbone=dict(arch='small'))
