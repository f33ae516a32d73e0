# Semantic FPN, QnA-ViT-T, ADE20K, 512x512 crops, 80 000 iterations.
# Published: no table entry (none in QnA, arXiv 2112.11435, that we could find).
# Our choice: PVT's recipe, AdamW, 1e-4 for 16 images, weight decay 1e-4, polynomial decay; drop
# path as for ImageNet and mixed precision.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = [
    './_base_/models/semfpn.py',
    './_base_/datasets/ade20k_512.py',
    './_base_/schedules/ade20k_80k_adamw.py',
    './_base_/ade20k_runtime.py',
]

model = dict(
    backbone=dict(
        type='mmlocalattn.QnAViT',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.05,
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
