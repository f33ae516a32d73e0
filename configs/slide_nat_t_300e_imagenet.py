# Slide-NAT-T, with the recipe of NAT-T.
# Published: 83.6 top-1 (ImageNet table).
_base_ = './slide_nat_m_300e_imagenet.py'

model = dict(backbone=dict(arch='tiny'))
