# DiNAT-T, with the released recipe.
# Published: 47.8 mIoU, 48.8 multi-scale mIoU (ADE20K table "UPerNet").
# Weights: https://shi-labs.com/projects/dinat/checkpoints/ade20k/upernet_dinat_tiny.pth
_base_ = './upernet_dinat_m_160k_ade20k.py'

model = dict(backbone=dict(arch='tiny', drop_path_rate=0.3))
