# RTMDet-Ins-L, SSViT-T, COCO, 100 epochs.
# Published: no table entry (SSViT, arXiv 2405.13335, trains no RTMDet).
# Our choice: mmdet's recipe for RTMDet-L with Swin-B (AdamW, 1e-3 for 128 images, weight decay 0.05
# but none on norms and biases, 640x640 images with mosaic and mixup), and the drop path of its Mask
# R-CNN.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = './_base_/models/rtmdet_ins.py'

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
