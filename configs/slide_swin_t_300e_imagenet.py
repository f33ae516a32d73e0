# Slide-Swin-T, ImageNet-1k, 300 epochs at 224x224.
# Published: 82.3 top-1 (Slide-Transformer, arXiv 2304.04237, ImageNet table).
# The recipe is that of the released code (github.com/LeapLabTHU/Slide-Transformer), Swin's: AdamW,
# 1e-3 for 1024 images, weight decay 0.05 but none on norms, biases and position biases, cosine to
# 1e-5 after 20 warm-up epochs from 1e-6, RandAugment 9 (mstd 0.5), mixup 0.8, CutMix 1.0, random
# erasing 0.25, label smoothing 0.1, gradients clipped to norm 5, windows as large as the map, drop
# path 0.2 (0.3 for S, 0.5 for B). timm leaves colour jitter out when RandAugment is on; so does
# this config.
# Our choice: mixed precision.
_base_ = [
    './_base_/models/classifier.py',
    './_base_/datasets/imagenet_224.py',
    './_base_/schedules/imagenet_300e_adamw.py',
    './_base_/imagenet_runtime.py',
]

model = dict(
    backbone=dict(
        type='mmlocalattn.SlideSwin',
        arch='tiny',
        out_indices=(3,),
        output_norm=True,
        drop_path_rate=0.2,
        window_size=56,
    ),
    head=dict(in_channels=768),
)
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
