# RetinaNet, Slide-PVT-T, COCO, 12 epochs.
# Published: no table entry (no RetinaNet among the released figures of Slide-Transformer, arXiv
# 2304.04237).
# Slide-Transformer's own recipe for dense prediction is not published; this is that of its host,
# PVT (github.com/whai362/PVT, detection/, mmdet's too): AdamW, 1e-4 for 16 images, weight decay
# 1e-4 on every parameter, the rest as Mask R-CNN 1x.
# Our choice: mixed precision.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    './_base_/schedules/coco_1x_adamw.py',
    './_base_/coco_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.SlidePVT',
        arch='tiny',
        out_indices=(1, 2, 3),  # RetinaNet does not use the stride-4 map
        output_norm=False,
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=[128, 320, 512], start_level=0),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=1e-4), paramwise_cfg=dict(_delete_=True))
