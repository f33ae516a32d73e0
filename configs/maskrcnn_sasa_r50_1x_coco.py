# Mask R-CNN, SASA-ResNet-50 with convolution stem, COCO, 12 epochs.
# Published: no table entry (SASA, arXiv 1906.05909, has no Mask R-CNN).
# Our choice: mmdet's 1x recipe of Mask R-CNN R50 (SGD, 0.02 for 16 images), SyncBN, nothing frozen.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    './_base_/coco_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.SASAResNet',
        depth=50,
        stem='conv',
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
)
