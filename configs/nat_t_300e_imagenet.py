# NAT-T. Paper, ImageNet table: 83.2 top-1. Released recipe.
_base_ = './nat_m_300e_imagenet.py'

model = dict(backbone=dict(arch='tiny'))
