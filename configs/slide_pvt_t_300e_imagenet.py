# Slide-PVT-T, ImageNet-1k, 300 epochs at 224x224.
# Published: 78.0 top-1 (Slide-Transformer, arXiv 2304.04237, ImageNet table).
# The paper's recipe is released for Slide-Swin alone; this is that of the host, PVT
# (github.com/whai362/PVT, classification/), DeiT's: AdamW, 1e-3 for 1024 images, weight decay 0.05,
# cosine to 1e-5 after 5 warm-up epochs from 1e-6, RandAugment 9 (mstd 0.5), mixup 0.8, CutMix 1.0,
# random erasing 0.25, label smoothing 0.1, repeated augmentation, drop path 0.1, no clipping (M:
# 0.3, clipped to norm 1). timm leaves colour jitter out when RandAugment is on; so does this
# config.
# Our choice: no weight decay on position embeddings, as of PVTv2's code.
_base_ = [
    './_base_/models/classifier.py',
    './_base_/datasets/imagenet_224.py',
    './_base_/schedules/imagenet_300e_adamw.py',
    './_base_/imagenet_runtime.py',
]

model = dict(
    backbone=dict(
        type='mmlocalattn.SlidePVT',
        arch='tiny',
        out_indices=(3,),
        output_norm=True,
        drop_path_rate=0.1,
    ),
    head=dict(in_channels=512),
)
train_dataloader = dict(sampler=dict(type='RepeatAugSampler', shuffle=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
