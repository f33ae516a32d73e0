# Semantic FPN, Slide-PVT-T, ADE20K, 512x512 crops, 80 000 iterations.
# Published: 38.43 mIoU (Slide-Transformer, arXiv 2304.04237, ADE20K table "S-FPN").
# Slide-Transformer's own recipe for dense prediction is not published; this is that of its host,
# PVT (github.com/whai362/PVT, segmentation/): AdamW, 1e-4 for 16 images (released for twice the
# images, twice the rate and half the iterations), weight decay 1e-4 on every parameter, polynomial
# decay to 0, no output norms, drop path 0.1.
# Our choice: mixed precision.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = [
    './_base_/models/semfpn.py',
    './_base_/datasets/ade20k_512.py',
    './_base_/schedules/ade20k_80k_adamw.py',
    './_base_/ade20k_runtime.py',
]

model = dict(
    backbone=dict(
        type='mmlocalattn.SlidePVT',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        output_norm=False,
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=80000),
]
