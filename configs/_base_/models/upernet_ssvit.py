# UPerNet with an SSViT-S backbone. ImageNet weights: see maskrcnn_ssvit.py in this folder.
_base_ = './upernet.py'

model = dict(
    backbone=dict(
        type='mmlocalattn.SSViT',
        arch='small',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.15,
        scan='adaptive',
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
