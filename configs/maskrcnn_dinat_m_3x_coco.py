# DiNAT-M, with the released recipe, which is that of NAT, and the dilations of large images.
# Published: 47.2 box AP, 42.5 mask AP (DiNAT, arXiv 2209.15001, COCO table "Mask R-CNN").
# Weights: https://shi-labs.com/projects/dinat/checkpoints/coco/maskrcnn_dinat_mini.pth
_base_ = './maskrcnn_nat_m_3x_coco.py'

# As in the released evaluation, maps smaller than a window grow by zeros.
model = dict(backbone=dict(type='mmlocalattn.DiNAT', dilations='coco', pad_small_maps=True))
