# RetinaNet, ResNet-50 of convolutions only.
# Published: no table entry (table 2 is for 150 epochs).
_base_ = './retinanet_sasa_r50_convhead_convstem_1x_coco.py'

model = dict(backbone=dict(conv_stages=4))
