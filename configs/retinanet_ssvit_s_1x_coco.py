# SSViT-S. Paper, COCO table "RetinaNet 1x": 47.5 AP. RMT-S recipe.
_base_ = './retinanet_ssvit_t_1x_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))
