# NAT-B, with the released recipe.
# Published: 84.3 top-1 (ImageNet table).
# Weights: https://shi-labs.com/projects/nat/checkpoints/CLS/nat_base.pth
_base_ = './nat_m_300e_imagenet.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5),
    head=dict(in_channels=1024),
)
