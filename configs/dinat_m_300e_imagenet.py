# DiNAT-M. Paper: DiNAT (arXiv 2209.15001), ImageNet table: M 81.8 top-1. Released recipe, as NAT.
_base_ = './nat_m_300e_imagenet.py'

model = dict(backbone=dict(type='mmlocalattn.DiNAT'))
