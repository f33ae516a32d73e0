# Attention stem. Paper, table 2, by its recipe: 36.2 AP, 25.9 M parameters.
_base_ = './retinanet_sasa_r50_convhead_convstem_1x_coco.py'

model = dict(backbone=dict(stem='attention'))
