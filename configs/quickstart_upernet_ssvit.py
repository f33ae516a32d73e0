# The quickstart's segmentation: a narrow SSViT UPerNet learns the digit cards of
# tools/make_sample_data.py in minutes on two CPU cores. The model code is that of the ADE20K
# config; the sizes and the recipe below are our choice, to be quick on small images.
_base_ = './upernet_ssvit_s_160k_ade20k.py'

embed_dims = [32, 64, 128, 160]
num_classes = 5
size = (160, 160)
norm_cfg = dict(type='BN', requires_grad=True)
loss_decode = dict(class_weight=[0.2, 1.0, 1.0, 1.0, 1.0])  # four of five pixels are background
model = dict(
    data_preprocessor=dict(size=size),
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=embed_dims,
            depths=[1, 1, 2, 1],
            num_heads=[1, 2, 4, 5],
            mlp_ratios=[3, 3, 3, 3],
        ),
        drop_path_rate=0.0,
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        in_channels=embed_dims,
        channels=64,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        loss_decode=loss_decode,
    ),
    auxiliary_head=dict(
        in_channels=embed_dims[2],
        channels=64,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        loss_decode=loss_decode,
    ),
)

# Data. No flip: a mirrored digit is not a digit.
metainfo = dict(
    classes=('background', '0', '1', '2', '3'),
    palette=[[0, 0, 0], [230, 80, 60], [60, 160, 230], [240, 190, 50], [120, 200, 90]],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='BaseSegDataset',
        data_root='data/digit_cards',
        data_prefix=dict(img_path='train', seg_map_path='semantic/train'),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='BaseSegDataset',
        data_root='data/digit_cards',
        data_prefix=dict(img_path='val', seg_map_path='semantic/val'),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

# Recipe: 800 iterations, full precision, linear decay.
max_iters = 800
train_cfg = dict(max_iters=max_iters, val_interval=200)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=1.0, eta_min=1e-5, by_epoch=False, begin=50, end=max_iters),
]
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=100))
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=8)
