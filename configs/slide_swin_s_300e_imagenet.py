# Slide-Swin-S, with the released recipe.
# Published: 83.7 top-1 (ImageNet table).
_base_ = './slide_swin_t_300e_imagenet.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.3))
