# DiNAT-M. Paper: DiNAT (arXiv 2209.15001), COCO table "Cascade Mask R-CNN": 51.2 box AP,
# 44.4 mask AP. Released recipe, as NAT, with the dilations of large images.
_base_ = './cascade_maskrcnn_nat_m_3x_coco.py'

# As in the released evaluation, maps smaller than a window grow by zeros.
model = dict(backbone=dict(type='mmlocalattn.DiNAT', dilations='coco', pad_small_maps=True))
