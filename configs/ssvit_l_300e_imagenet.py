# SSViT-L, with the recipe of T.
# Published: 85.7 top-1 (ImageNet table).
_base_ = './ssvit_t_300e_imagenet.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.5),
    neck=dict(in_channels=640),
)
