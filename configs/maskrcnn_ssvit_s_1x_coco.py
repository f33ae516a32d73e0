# SSViT-S. Paper, COCO table "Mask R-CNN 1x": 49.4 box AP, 44.0 mask AP. RMT-S recipe.
_base_ = './maskrcnn_ssvit_t_1x_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))
