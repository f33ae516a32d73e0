# Semantic FPN, SSViT-T, ADE20K, 512x512 crops, 80 000 iterations.
# Published: 46.8 mIoU (SSViT, arXiv 2405.13335, ADE20K table "Semantic FPN").
# SSViT's own recipe is not published; this is RMT's (github.com/qhfan/RMT, segmentation/): AdamW,
# 1e-4, weight decay 1e-4, polynomial decay, 8 GPUs x 2 images.
# Our choice: mixed precision.
_base_ = [
    './_base_/models/semfpn_ssvit.py',
    './_base_/datasets/ade20k_512.py',
    './_base_/schedules/ade20k_80k_adamw.py',
    './_base_/ade20k_runtime.py',
]
