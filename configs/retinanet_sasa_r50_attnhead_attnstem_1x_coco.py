# RetinaNet with attentional head, SASA-ResNet-50 with attention stem.
# Published: no table entry (table 2 is for 150 epochs).
_base_ = './retinanet_sasa_r50_attnhead_convstem_1x_coco.py'

model = dict(backbone=dict(stem='attention'))
