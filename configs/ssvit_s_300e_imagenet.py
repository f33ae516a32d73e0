# SSViT-S. Paper, ImageNet table: 84.4 top-1. Same recipe as T.
_base_ = './ssvit_t_300e_imagenet.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))
