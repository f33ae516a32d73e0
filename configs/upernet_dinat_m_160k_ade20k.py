# DiNAT-M, with the released recipe, which is that of NAT, and the dilations of 512x512 crops.
# Published: 45.8 mIoU, 47.2 multi-scale mIoU (DiNAT, arXiv 2209.15001, ADE20K table "UPerNet").
# Weights: https://shi-labs.com/projects/dinat/checkpoints/ade20k/upernet_dinat_mini.pth
_base_ = './upernet_nat_m_160k_ade20k.py'

model = dict(backbone=dict(type='mmlocalattn.DiNAT', dilations='ade20k'))
