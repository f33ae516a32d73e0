# Mask R-CNN, SSViT-T, COCO, 12 epochs.
# Published: 47.3 box AP, 42.6 mask AP (SSViT, arXiv 2405.13335, COCO table "Mask R-CNN 1x").
# The recipe SSViT used for detection is not published. The nearest published one is that of RMT, by
# the same first author (github.com/qhfan/RMT, detect/), and is followed here: AdamW, 4e-4 (2e-4 for
# L), weight decay 0.05 but none on norms, 500 warm-up iterations, 2 images per GPU, SyncBN, fp16.
# Our choices: 8 GPUs (RMT does not say), dynamic loss scale.
_base_ = [
    './_base_/models/maskrcnn_ssvit.py',
    'mmdet::_base_/datasets/coco_instance.py',
    './_base_/schedules/coco_1x_adamw.py',
    './_base_/coco_runtime.py',
]
