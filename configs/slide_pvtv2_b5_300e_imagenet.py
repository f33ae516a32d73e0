# Slide-PVTv2-B5. Paper: not in the ImageNet table. PVTv2-B5 recipe.
_base_ = './slide_pvtv2_b1_300e_imagenet.py'

model = dict(backbone=dict(arch='b5', drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
