# Semantic FPN with an SSViT-T backbone. ImageNet weights: see maskrcnn_ssvit.py in this folder.
_base_ = './semfpn.py'

model = dict(
    backbone=dict(
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
