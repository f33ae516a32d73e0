# 160 000 iterations of AdamW with mixed precision: RMT's UPerNet recipe.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',  # our choice; RMT's mmcv hook used a constant 512
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(
            norm=dict(decay_mult=0.0), pos_bias=dict(decay_mult=0.0), pos_embed=dict(decay_mult=0.0)
        )
    ),
)
# RMT: 8 GPUs x 2 images.
auto_scale_lr = dict(enable=False, base_batch_size=16)
