# Slide-PVTv2-B3, with the recipe of PVTv2-B3.
# Published: no table entry (83.8 top-1 in a plot).
_base_ = './slide_pvtv2_b1_300e_imagenet.py'

model = dict(backbone=dict(arch='b3', drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
