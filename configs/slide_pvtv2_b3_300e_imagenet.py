# Slide-PVTv2-B3. Paper: 83.8 top-1 in a plot, not in the ImageNet table. PVTv2-B3 recipe.
_base_ = './slide_pvtv2_b1_300e_imagenet.py'

model = dict(backbone=dict(arch='b3', drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
