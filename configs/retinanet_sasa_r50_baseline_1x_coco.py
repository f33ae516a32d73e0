# Convolutions only. Paper, table 2, by its recipe: 36.5 AP, 33.4 M parameters.
_base_ = './retinanet_sasa_r50_convhead_convstem_1x_coco.py'

model = dict(backbone=dict(conv_stages=4))
