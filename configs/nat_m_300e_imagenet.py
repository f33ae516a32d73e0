# NAT-M, ImageNet-1k, 300 epochs at 224x224 and 10 at the lowest learning rate.
# Published: 81.8 top-1 (NAT, arXiv 2204.07143, ImageNet table).
# Weights: https://shi-labs.com/projects/nat/checkpoints/CLS/nat_mini.pth
# The recipe is that of the released code (github.com/SHI-Labs/Neighborhood-Attention-Transformer,
# classification/), timm's: AdamW, 1e-3, weight decay 0.05, cosine to 5e-6 after 20 warm-up epochs
# from 1e-6, RandAugment 9 (mstd 0.5), mixup 0.8, CutMix 1.0, random erasing 0.25, label smoothing
# 0.1, gradients clipped to norm 5, 128 images per GPU, drop path 0.2 (0.3 for S, 0.5 for B). timm
# leaves colour jitter out when RandAugment is on; so does this config.
# Our choices: 8 GPUs (the code does not say), dynamic loss scale, bicubic resizing.
_base_ = [
    './_base_/models/classifier.py',
    './_base_/datasets/imagenet_224.py',
    './_base_/schedules/imagenet_300e_adamw.py',
    './_base_/imagenet_runtime.py',
]

model = dict(
    backbone=dict(
        type='mmlocalattn.NAT',
        arch='mini',
        out_indices=(3,),
        output_norm=True,
        drop_path_rate=0.2,
    ),
    head=dict(in_channels=512),
)
train_cfg = dict(max_epochs=310)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=5e-6,
        by_epoch=True,
        begin=20,
        end=300,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
