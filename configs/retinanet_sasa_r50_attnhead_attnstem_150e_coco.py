# RetinaNet with attentional head, SASA-ResNet-50 with attention stem.
# Published: 36.6 box AP (table 2, with 22.0 M parameters).
_base_ = './retinanet_sasa_r50_attnhead_convstem_150e_coco.py'

model = dict(backbone=dict(stem='attention'))
