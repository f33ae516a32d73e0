# NAT-T. Paper, COCO table "Mask R-CNN": 47.7 box AP, 42.6 mask AP. Released recipe.
_base_ = './maskrcnn_nat_m_3x_coco.py'

model = dict(backbone=dict(arch='tiny'))
