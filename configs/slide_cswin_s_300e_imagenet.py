# Slide-CSwin-S, with the recipe of CSWin-S.
# Published: 84.0 top-1 (ImageNet table).
_base_ = './slide_cswin_t_300e_imagenet.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.4))
