# Attention stem. Paper, table 2: 36.6 AP, 22.0 M parameters.
_base_ = './retinanet_sasa_r50_attnhead_convstem_150e_coco.py'

model = dict(backbone=dict(stem='attention'))
