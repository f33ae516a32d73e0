# NAT-T, with the released recipe.
# Published: 83.2 top-1 (ImageNet table).
# Weights: https://shi-labs.com/projects/nat/checkpoints/CLS/nat_tiny.pth
_base_ = './nat_m_300e_imagenet.py'

model = dict(backbone=dict(arch='tiny'))
