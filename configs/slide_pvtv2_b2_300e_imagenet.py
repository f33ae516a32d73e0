# Slide-PVTv2-B2, with the recipe of PVTv2-B2.
# Published: 82.7 top-1 (ImageNet table).
_base_ = './slide_pvtv2_b1_300e_imagenet.py'

model = dict(backbone=dict(arch='b2'))
