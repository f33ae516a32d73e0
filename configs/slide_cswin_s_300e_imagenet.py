# Slide-CSwin-S. Paper, ImageNet table: 84.0 top-1. CSWin-S recipe.
_base_ = './slide_cswin_t_300e_imagenet.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.4))
