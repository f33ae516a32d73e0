# Cascade Mask R-CNN with an SSViT-T backbone. ImageNet weights: see maskrcnn_ssvit.py, here.
_base_ = './cascade_maskrcnn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.SSViT',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.1,
        scan='adaptive',
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
