# SSViT-S, with the recipe of T.
# Published: 84.4 top-1 (ImageNet table).
_base_ = './ssvit_t_300e_imagenet.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))
