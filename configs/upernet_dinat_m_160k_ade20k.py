# DiNAT-M. Paper: DiNAT (arXiv 2209.15001), ADE20K table "UPerNet": M 45.8 mIoU (47.2
# multi-scale). Released recipe, as NAT, with the dilations of 512x512 crops.
_base_ = './upernet_nat_m_160k_ade20k.py'

model = dict(backbone=dict(type='mmlocalattn.DiNAT', dilations='ade20k'))
