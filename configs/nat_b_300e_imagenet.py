# NAT-B. Paper, ImageNet table: 84.3 top-1. Released recipe.
_base_ = './nat_m_300e_imagenet.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5),
    head=dict(in_channels=1024),
)
