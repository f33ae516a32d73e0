# DINO with four scales, SSViT-T, COCO, 12 epochs.
# Published: no table entry (SSViT, arXiv 2405.13335, trains no DINO).
# Our choice: mmdet's recipe for R-50 as it is (AdamW, 1e-4 for 16 images, a tenth of it for the
# backbone, weight decay 1e-4, gradients clipped to norm 0.1), and the drop path of its Mask R-CNN.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = './_base_/models/dino.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.SSViT',
        arch='tiny',
        out_indices=(1, 2, 3),
        output_norm=True,
        drop_path_rate=0.1,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
