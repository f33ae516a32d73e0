# UPerNet, Slide-Swin-T, ADE20K, 512x512 crops, 160 000 iterations.
# Published: 45.67 mIoU (Slide-Transformer, arXiv 2304.04237, ADE20K table "UPerNet").
# Slide-Transformer's own recipe for dense prediction is not published; this is that of its host,
# Swin (github.com/SwinTransformer/Swin-Transformer-Semantic-Segmentation, mmsegmentation's too):
# AdamW, 6e-5 for 16 images, weight decay 0.01 but none on norms and position biases, linear decay,
# 1500 warm-up iterations, shifted windows of 7, drop path 0.3.
# Our choice: mixed precision.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k_512.py',
    './_base_/schedules/ade20k_160k_adamw.py',
    './_base_/ade20k_runtime.py',
]

model = dict(
    backbone=dict(
        type='mmlocalattn.SlideSwin',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.3,
        window_size=7,
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
