# Mask R-CNN, Slide-PVT-T, COCO, 12 epochs.
# Published: 40.4 box AP, 38.1 mask AP (Slide-Transformer, arXiv 2304.04237, COCO table "Mask
# R-CNN").
# Slide-Transformer's own recipe for dense prediction is not published; this is that of its host,
# PVT (github.com/whai362/PVT, detection/): AdamW, 2e-4 for 16 images, weight decay 1e-4 on every
# parameter, 500 warm-up iterations, steps at epochs 8 and 11, no output norms, drop path 0.1 (none
# for M).
# Our choice: mixed precision.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    './_base_/schedules/coco_1x_adamw.py',
    './_base_/coco_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.SlidePVT',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        output_norm=False,
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4), paramwise_cfg=dict(_delete_=True))
