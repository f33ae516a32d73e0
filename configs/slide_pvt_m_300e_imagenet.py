# Slide-PVT-M, with the recipe of PVT-M.
# Published: no table entry (82.9 top-1 in a plot).
_base_ = './slide_pvt_t_300e_imagenet.py'

model = dict(backbone=dict(arch='medium', drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
