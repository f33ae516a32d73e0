# Slide-NAT-M, with the recipe of NAT-M.
# Published: no table entry (82.4 top-1 in a plot of Slide-Transformer, arXiv 2304.04237).
_base_ = './nat_m_300e_imagenet.py'

model = dict(backbone=dict(type='mmlocalattn.SlideNAT'))
