# Slide-PVT-S. Paper, ImageNet table: 81.7 top-1. PVT-S recipe.
_base_ = './slide_pvt_t_300e_imagenet.py'

model = dict(backbone=dict(arch='small'))
