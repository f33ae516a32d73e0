# Slide-Swin-B, with the released recipe.
# Published: 84.2 top-1 (ImageNet table).
_base_ = './slide_swin_t_300e_imagenet.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5),
    head=dict(in_channels=1024),
)
