# Slide-PVTv2-B4. Paper: 84.1 top-1 in a plot, not in the ImageNet table. PVTv2-B4 recipe.
_base_ = './slide_pvtv2_b1_300e_imagenet.py'

model = dict(backbone=dict(arch='b4', drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
