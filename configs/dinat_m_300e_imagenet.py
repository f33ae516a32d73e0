# DiNAT-M, with the released recipe, which is that of NAT.
# Published: 81.8 top-1 (DiNAT, arXiv 2209.15001, ImageNet table).
# Weights: https://shi-labs.com/projects/dinat/checkpoints/imagenet1k/dinat_mini_in1k_224.pth
_base_ = './nat_m_300e_imagenet.py'

model = dict(backbone=dict(type='mmlocalattn.DiNAT'))
