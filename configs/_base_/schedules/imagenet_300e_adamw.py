# 300 epochs of AdamW with mixed precision: Swin Transformer's recipe, 1e-3 for 1024 images, a
# linear warm-up of 20 epochs from 1e-6 and a cosine to 1e-5, weight decay 0.05 but none on norms,
# biases and position biases. Clipping is left to the configs.
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=20,
        end=300,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys=dict(pos_bias=dict(decay_mult=0.0), pos_embed=dict(decay_mult=0.0)),
    ),
)
# 8 GPUs x 128 images.
auto_scale_lr = dict(enable=False, base_batch_size=1024)
