# Slide-PVT-S, with the recipe of PVT-S.
# Published: 81.7 top-1 (ImageNet table).
_base_ = './slide_pvt_t_300e_imagenet.py'

model = dict(backbone=dict(arch='small'))
