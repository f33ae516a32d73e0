# UPerNet, QnA-ViT-T, ADE20K, 512x512 crops, 160 000 iterations.
# Published: no table entry (none in QnA, arXiv 2112.11435, that we could find).
# Our choice: Swin Transformer's recipe, AdamW, 6e-5 for 16 images, weight decay 0.01 but none on
# norms, position biases and attention scales, linear decay, 1500 warm-up iterations; drop path as
# for ImageNet and mixed precision.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k_512.py',
    './_base_/schedules/ade20k_160k_adamw.py',
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
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(attention_scale=dict(decay_mult=0.0))),
)
