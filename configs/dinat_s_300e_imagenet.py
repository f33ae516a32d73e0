# DiNAT-S. Paper, ImageNet table: 83.8 top-1. Released recipe.
_base_ = './dinat_m_300e_imagenet.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.3),
    head=dict(in_channels=768),
)
