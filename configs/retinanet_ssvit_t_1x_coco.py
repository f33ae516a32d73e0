# RetinaNet, SSViT-T, COCO, 12 epochs.
# Published: 45.6 box AP (SSViT, arXiv 2405.13335, COCO table "RetinaNet 1x").
# SSViT's own recipe is not published; this is RMT's (github.com/qhfan/RMT, detect/): AdamW, 4e-4
# (2e-4 for L), weight decay 1e-4 on every parameter, the rest as Mask R-CNN 1x.
# Our choices: 8 GPUs (RMT does not say), dynamic loss scale.
_base_ = [
    './_base_/models/retinanet_ssvit.py',
    'mmdet::_base_/datasets/coco_detection.py',
    './_base_/schedules/coco_1x_adamw.py',
    './_base_/coco_runtime.py',
]

optim_wrapper = dict(optimizer=dict(weight_decay=1e-4), paramwise_cfg=dict(_delete_=True))
