# Slide-PVTv2-B5, with the recipe of PVTv2-B5.
# Published: no table entry (not in the ImageNet table).
_base_ = './slide_pvtv2_b1_300e_imagenet.py'

model = dict(backbone=dict(arch='b5', drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
