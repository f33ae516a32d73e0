# Slide-PVTv2-B2. Paper, ImageNet table: 82.7 top-1. PVTv2-B2 recipe.
_base_ = './slide_pvtv2_b1_300e_imagenet.py'

model = dict(backbone=dict(arch='b2'))
