# SSViT-T, ImageNet-1k, 300 epochs at 224x224.
# Published: 83.0 top-1 (SSViT, arXiv 2405.13335, ImageNet table).
# The recipe is that of the released classification code and training logs (github.com/qhfan/SSViT):
# AdamW, 2e-3 for 2048 images, weight decay 0.05, cosine to 1e-5 after 5 warm-up epochs from 1e-6,
# RandAugment 9 (mstd 0.5), mixup 0.8, cutmix 1.0, random erasing 0.25, label smoothing 0.1,
# repeated augmentation, EMA, SyncBN, no clipping. timm leaves colour jitter out when RandAugment is
# on; so does this config.
# Our choices: dynamic loss scale, no weight decay on 1-d parameters (timm's habit).
_base_ = [
    './_base_/datasets/imagenet_224.py',
    './_base_/imagenet_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmlocalattn.SSViT',
        arch='tiny',
        out_indices=(3,),
        output_norm=False,
        drop_path_rate=0.1,
        scan='adaptive',
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    neck=dict(
        type='mmlocalattn.SSViTNeck',
        in_channels=512,
        out_channels=1024,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=1024,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)

train_dataloader = dict(sampler=dict(type='RepeatAugSampler', shuffle=True))

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
param_scheduler = [
    dict(type='LinearLR', start_factor=5e-4, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
# The released decay 0.99996 ** (2048 / 512) is 0.99984; timm averages buffers too.
custom_hooks = [dict(type='EMAHook', momentum=1.6e-4, update_buffers=True)]
# 16 GPUs x 128 images, as in the released logs.
auto_scale_lr = dict(enable=False, base_batch_size=2048)
