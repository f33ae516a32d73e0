# UPerNet, SASA-ResNet-50 with convolution stem, ADE20K, 512x512 crops, 160 000 iterations.
# Published: no table entry (SASA, arXiv 1906.05909, has no segmentation).
# Our choice: the recipe of mmsegmentation's UPerNet R50 (SGD, 0.01 for 16 images, weight decay
# 5e-4, polynomial decay of power 0.9 to 1e-4).
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k_512.py',
    './_base_/schedules/ade20k_160k_adamw.py',
    './_base_/ade20k_runtime.py',
]

model = dict(
    backbone=dict(
        type='mmlocalattn.SASAResNet',
        depth=50,
        stem='conv',
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=1e-4, by_epoch=False, begin=0, end=160000),
]
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4),
)
