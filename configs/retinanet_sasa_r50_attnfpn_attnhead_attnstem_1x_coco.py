# Attention stem. Paper: appendix A.3, not the counts of table 2.
_base_ = './retinanet_sasa_r50_attnfpn_attnhead_convstem_1x_coco.py'

model = dict(backbone=dict(stem='attention'))
