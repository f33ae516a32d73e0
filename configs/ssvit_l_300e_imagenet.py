# SSViT-L. Paper, ImageNet table: 85.7 top-1. Same recipe as T.
_base_ = './ssvit_t_300e_imagenet.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.5),
    neck=dict(in_channels=640),
)
