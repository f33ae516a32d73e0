# UPerNet, SSViT-S, ADE20K, 512x512 crops, 160 000 iterations.
# Published: 50.1 mIoU (SSViT, arXiv 2405.13335, ADE20K table "UPerNet"; whether single- or
# multi-scale is uncertain; this config tests single-scale).
# SSViT's own recipe is not published; this is RMT's (github.com/qhfan/RMT, segmentation/): AdamW,
# 6e-5, weight decay 0.01 but none on norms, linear decay, 1500 warm-up iterations, 8 GPUs x 2
# images, fp16.
# Our choice: dynamic loss scale.
_base_ = [
    './_base_/models/upernet_ssvit.py',
    './_base_/datasets/ade20k_512.py',
    './_base_/schedules/ade20k_160k_adamw.py',
    './_base_/ade20k_runtime.py',
]
