# NAT-S, with the released recipe.
# Published: 83.7 top-1 (ImageNet table).
# Weights: https://shi-labs.com/projects/nat/checkpoints/CLS/nat_small.pth
_base_ = './nat_m_300e_imagenet.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.3),
    head=dict(in_channels=768),
)
