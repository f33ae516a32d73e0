# SSViT-B, with the recipe of T.
# Published: 85.3 top-1 (ImageNet table).
_base_ = './ssvit_t_300e_imagenet.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.4))
