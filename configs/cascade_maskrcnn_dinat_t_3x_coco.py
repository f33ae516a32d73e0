# DiNAT-T. Paper, COCO table "Cascade Mask R-CNN": 52.2 box AP, 45.1 mask AP. Released recipe.
_base_ = './cascade_maskrcnn_dinat_m_3x_coco.py'

model = dict(backbone=dict(arch='tiny', drop_path_rate=0.3))
