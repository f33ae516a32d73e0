# DiNAT-T, with the released recipe.
# Published: 82.7 top-1 (ImageNet table).
# Weights: https://shi-labs.com/projects/dinat/checkpoints/imagenet1k/dinat_tiny_in1k_224.pth
_base_ = './dinat_m_300e_imagenet.py'

model = dict(backbone=dict(arch='tiny'))
