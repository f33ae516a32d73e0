# 12 epochs, AdamW with mixed precision: RMT's Mask R-CNN 1x recipe. No gradient clipping.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',  # our choice; RMT's mmcv hook used a constant 512
    optimizer=dict(type='AdamW', lr=4e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys=dict(
            norm=dict(decay_mult=0.0), pos_bias=dict(decay_mult=0.0), pos_embed=dict(decay_mult=0.0)
        )
    ),
)
# 8 GPUs x 2 images. RMT states 2 images per GPU but not how many GPUs: 8 is our choice.
auto_scale_lr = dict(enable=False, base_batch_size=16)
