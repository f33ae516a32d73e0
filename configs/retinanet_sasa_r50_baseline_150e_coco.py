# RetinaNet, ResNet-50 of convolutions only.
# Published: 36.5 box AP (table 2, with 33.4 M parameters).
_base_ = './retinanet_sasa_r50_convhead_convstem_150e_coco.py'

model = dict(backbone=dict(conv_stages=4))
