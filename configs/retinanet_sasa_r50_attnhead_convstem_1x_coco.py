# RetinaNet with attentional head, SASA-ResNet-50 with convolution stem.
# Published: no table entry (table 2 of SASA, arXiv 1906.05909, is for 150 epochs; see
# retinanet_sasa_r50_attnhead_convstem_150e_coco.py).
# The FPN is convolutional, which gives the published 22.0 M parameters; with the attentional one of
# the paper's text, see retinanet_sasa_r50_attnfpn_attnhead_convstem_1x_coco.py.
# Our choice: the last attention of the head is 256 wide like the others.
_base_ = ['./retinanet_sasa_r50_convhead_convstem_1x_coco.py']

model = dict(bbox_head=dict(type='mmlocalattn.AttentionRetinaHead'))
