# SASA-ResNet-26 with convolution stem, ImageNet-1k, 130 epochs at 224x224.
# Published: 75.8 top-1 (SASA, arXiv 1906.05909, table 1, with 10.3 M parameters).
# The paper's recipe (appendix A.2): SGD with Nesterov momentum, 1.6 for 4096 images, 10 epochs of
# linear warm-up, a cosine, decay 0.9999 of the statistics of BatchNorm and of the averaged weights.
# Our choices, where the paper is silent: momentum 0.9, weight decay 1e-4 but none on norms, random
# crops and flips alone, cross-entropy without smoothing, cosine to 0, SyncBN, mixed precision.
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    './_base_/imagenet_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmlocalattn.SASAResNet',
        depth=26,
        stem='conv',
        out_indices=(3,),
        norm_cfg=dict(type='SyncBN', momentum=1e-4, requires_grad=True),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)

train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=128)
test_dataloader = dict(batch_size=128)

train_cfg = dict(by_epoch=True, max_epochs=130, val_interval=1)
val_cfg = dict()
test_cfg = dict()
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        by_epoch=True,
        begin=10,
        end=130,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='SGD', lr=1.6, momentum=0.9, nesterov=True, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
custom_hooks = [dict(type='EMAHook', momentum=1e-4, update_buffers=True)]
# 32 GPUs x 128 images.
auto_scale_lr = dict(enable=False, base_batch_size=4096)
