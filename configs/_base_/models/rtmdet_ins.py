# mmdet's RTMDet-Ins-L for backbones of transformers: what RTMDet-L with Swin-B changes (GroupNorm,
# ImageNet's RGB statistics, 100 epochs, 1e-3 for 4 GPUs x 32 images, the last 10 epochs without
# mosaic and mixup). A config adds the backbone and the neck's `in_channels`.
_base_ = 'mmdet::rtmdet/rtmdet-ins_l_8xb32-300e_coco.py'

norm_cfg = dict(type='GN', num_groups=32)
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    neck=dict(norm_cfg=norm_cfg),
    bbox_head=dict(norm_cfg=norm_cfg),
)
max_epochs, last_epochs, base_lr = 100, 10, 1e-3
train_cfg = dict(max_epochs=max_epochs, dynamic_intervals=[(max_epochs - last_epochs, 1)])
optim_wrapper = dict(optimizer=dict(lr=base_lr))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=1000),
    dict(
        type='CosineAnnealingLR',
        eta_min=base_lr * 0.05,
        begin=max_epochs // 2,
        end=max_epochs,
        T_max=max_epochs // 2,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.0002,
        update_buffers=True,
        priority=49,
    ),
    dict(
        type='PipelineSwitchHook',
        switch_epoch=max_epochs - last_epochs,
        switch_pipeline={{_base_.train_pipeline_stage2}},
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=128)
