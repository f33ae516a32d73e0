# RetinaNet with attentional FPN and head, SASA-ResNet-50 with convolution stem.
# Paper: SASA (arXiv 1906.05909), table 2: 36.6 AP, 22.0 M parameters (here 20.0 M, see
# docs/sasa.md). Our choice: the last attention of the head is 256 wide like the others.
_base_ = ['./retinanet_sasa_r50_convhead_convstem_150e_coco.py']

model = dict(
    neck=dict(
        _delete_=True,
        type='mmlocalattn.AttentionFPN',
        in_channels=[512, 1024, 2048],
        out_channels=256,
        num_outs=5,
    ),
    bbox_head=dict(type='mmlocalattn.AttentionRetinaHead'),
)
