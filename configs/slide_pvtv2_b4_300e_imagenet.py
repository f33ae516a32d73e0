# Slide-PVTv2-B4, with the recipe of PVTv2-B4.
# Published: no table entry (84.1 top-1 in a plot).
_base_ = './slide_pvtv2_b1_300e_imagenet.py'

model = dict(backbone=dict(arch='b4', drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
