# RetinaNet of mmdet with an SSViT-T backbone. ImageNet weights: see maskrcnn_ssvit.py, here.
# RetinaNet does not use the stride-4 map, so the backbone does not return it (its output norm would
# get no gradient, which DistributedDataParallel rejects).
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.SSViT',
        arch='tiny',
        out_indices=(1, 2, 3),
        output_norm=True,
        drop_path_rate=0.1,
        scan='adaptive',
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    neck=dict(in_channels=[128, 256, 512], start_level=0),
)
