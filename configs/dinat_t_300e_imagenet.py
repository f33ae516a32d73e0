# DiNAT-T. Paper, ImageNet table: 82.7 top-1. Released recipe.
_base_ = './dinat_m_300e_imagenet.py'

model = dict(backbone=dict(arch='tiny'))
