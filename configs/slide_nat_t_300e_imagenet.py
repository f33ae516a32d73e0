# Slide-NAT-T. Paper, ImageNet table: 83.6 top-1. NAT-T recipe.
_base_ = './slide_nat_m_300e_imagenet.py'

model = dict(backbone=dict(arch='tiny'))
