# RetinaNet with attentional FPN and head, SASA-ResNet-50 with attention stem.
# Published: no table entry (appendix A.3 of the paper, not the counts of table 2).
_base_ = './retinanet_sasa_r50_attnfpn_attnhead_convstem_1x_coco.py'

model = dict(backbone=dict(stem='attention'))
