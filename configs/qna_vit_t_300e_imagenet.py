# QnA-ViT-T, ImageNet-1k, 300 epochs at 224x224.
# Published: 81.7 top-1 (QnA, arXiv 2112.11435, table of the released models, with 15.7 M parameters
# and 2.5 GFLOPs).
# The recipe is that of the released code (github.com/moabarar/qna): AdamW, 2e-3 for 1024 images,
# weight decay 0.05 but none on position biases and attention scales (it is on norms and biases),
# cosine to 0 after 5 warm-up epochs from 0 (20 for B), RandAugment 9 (mstd 0.5), colour jitter of
# strength 0.3 as in SimCLR, mixup 0.8, CutMix 1.0, random erasing 0.25, label smoothing 0.1, mixed
# precision with dynamic loss scale, no clipping, drop path 0.05 (0.2 for S, 0.5 for B).
# Our choices: 8 GPUs, the operations of timm's RandAugment, bicubic resizing, and no jitter of hue
# (0.06 there), because mmcv's adjust_hue overflows under NumPy 2.
_base_ = [
    './_base_/models/classifier.py',
    './_base_/datasets/imagenet_224.py',
    './_base_/imagenet_runtime.py',
]

model = dict(
    backbone=dict(
        type='mmlocalattn.QnAViT',
        arch='tiny',
        out_indices=(3,),
        output_norm=True,
        drop_path_rate=0.05,
    ),
    head=dict(in_channels=512),
)

jitter = dict(type='ColorJitter', brightness=0.24, contrast=0.24, saturation=0.24)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'),
    ),
    dict(type='RandomApply', transforms=[jitter], prob=0.8),
    dict(
        type='RandomGrayscale',
        prob=0.2,
        keep_channels=True,
        channel_weights=(0.114, 0.587, 0.299),
    ),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=[103.53, 116.28, 123.675],
        fill_std=[57.375, 57.12, 58.395],
    ),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=5, end=300, convert_to_iter_based=True),
]
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys=dict(pos_bias=dict(decay_mult=0.0), attention_scale=dict(decay_mult=0.0))
    ),
)
auto_scale_lr = dict(enable=False, base_batch_size=1024)
