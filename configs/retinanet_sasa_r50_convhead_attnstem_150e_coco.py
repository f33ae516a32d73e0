# RetinaNet, SASA-ResNet-50 with attention stem.
# Published: 36.2 box AP (table 2, with 25.9 M parameters).
_base_ = './retinanet_sasa_r50_convhead_convstem_150e_coco.py'

model = dict(backbone=dict(stem='attention'))
