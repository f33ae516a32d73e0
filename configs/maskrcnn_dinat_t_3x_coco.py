# DiNAT-T. Paper, COCO table "Mask R-CNN": 48.6 box AP, 43.5 mask AP. Released recipe.
_base_ = './maskrcnn_dinat_m_3x_coco.py'

model = dict(backbone=dict(arch='tiny'))
