# Slide-NAT-S, with the recipe of NAT-S.
# Published: 84.3 top-1 (ImageNet table).
_base_ = './slide_nat_m_300e_imagenet.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.3),
    head=dict(in_channels=768),
)
