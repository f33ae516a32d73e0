# DiNAT-M. Paper: DiNAT (arXiv 2209.15001), COCO table "Mask R-CNN": M 47.2 box AP, 42.5 mask AP.
# Released recipe, as NAT, with the dilations of large images.
_base_ = './maskrcnn_nat_m_3x_coco.py'

model = dict(backbone=dict(type='mmlocalattn.DiNAT', dilations='coco'))
