# RetinaNet with attentional FPN and head, SASA-ResNet-50 with convolution stem.
# Published: no table entry (appendix A.3 of SASA, arXiv 1906.05909; it has 20.0 M parameters, which
# table 2 has not, see docs/sasa.md).
# Our choice: attention of width 256 as the last one of the head.
_base_ = ['./retinanet_sasa_r50_attnhead_convstem_1x_coco.py']

model = dict(
    neck=dict(
        _delete_=True,
        type='mmlocalattn.AttentionFPN',
        in_channels=[512, 1024, 2048],
        out_channels=256,
        num_outs=5,
    )
)
