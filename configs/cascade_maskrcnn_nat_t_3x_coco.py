# NAT-T. Paper, COCO table "Cascade Mask R-CNN": 51.4 box AP, 44.5 mask AP. Released recipe.
_base_ = './cascade_maskrcnn_nat_m_3x_coco.py'

model = dict(backbone=dict(arch='tiny', drop_path_rate=0.3))
