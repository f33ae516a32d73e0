# SSViT-S, with the recipe of RMT-S.
# Published: 47.5 box AP (COCO table "RetinaNet 1x").
_base_ = './retinanet_ssvit_t_1x_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))
