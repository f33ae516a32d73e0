# Attention stem. Paper, table 2, by its recipe: 36.6 AP, 22.0 M parameters.
_base_ = './retinanet_sasa_r50_attnhead_convstem_1x_coco.py'

model = dict(backbone=dict(stem='attention'))
