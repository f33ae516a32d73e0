# RetinaNet of mmdet with a SASA-ResNet-50 backbone (convolution stem) and convolutional heads. The
# detector is the paper's: its published parameters and FLOPs are those of six anchors per position
# (two scales, three ratios) and of extra levels made from the last output of the FPN.
# ImageNet weights: see maskrcnn_ssvit.py in this folder. Without them training starts from random
# weights, so that nothing is frozen.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.SASAResNet',
        depth=50,
        stem='conv',
        out_indices=(1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    neck=dict(in_channels=[512, 1024, 2048], start_level=0, add_extra_convs='on_output'),
    bbox_head=dict(anchor_generator=dict(scales_per_octave=2)),
)
