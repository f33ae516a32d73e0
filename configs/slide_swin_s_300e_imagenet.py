# Slide-Swin-S. Paper, ImageNet table: 83.7 top-1. Released recipe.
_base_ = './slide_swin_t_300e_imagenet.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.3))
