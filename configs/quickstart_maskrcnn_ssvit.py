# The quickstart: a narrow SSViT Mask R-CNN learns the digit cards of tools/make_sample_data.py in
# minutes on two CPU cores. The model code is that of the COCO config; the sizes and the recipe
# below are our choice, to be quick on small images.
_base_ = './maskrcnn_ssvit_t_1x_coco.py'

# Model: narrow and shallow, fewer samples and proposals than for 800-pixel images.
embed_dims = [32, 64, 128, 160]
num_classes = 4
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=embed_dims,
            depths=[1, 1, 2, 1],
            num_heads=[1, 2, 4, 5],
            mlp_ratios=[3, 3, 3, 3],
        ),
        drop_path_rate=0.0,
        norm_cfg=dict(type='BN'),
    ),
    neck=dict(in_channels=embed_dims, out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(
            _delete_=True,
            type='AnchorGenerator',
            octave_base_scale=8,  # squares of 32, 45, 64, 90, ... pixels
            scales_per_octave=2,
            ratios=[1.0],
            strides=[4, 8, 16, 32],
        ),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=num_classes),
        mask_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=num_classes),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(nms=dict(class_agnostic=True), max_per_img=20),  # one digit per card
    ),
)

# Data. No flip: a mirrored digit is not a digit.
data_root = 'data/digit_cards/'
metainfo = dict(
    classes=('0', '1', '2', '3'),
    palette=[(230, 80, 60), (60, 160, 230), (240, 190, 50), (120, 200, 90)],
)
scale = (160, 160)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

# Recipe: 5 epochs of 100 iterations, full precision, cosine.
max_epochs = 5
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        eta_min_ratio=0.02,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
default_hooks = dict(logger=dict(interval=10))
log_processor = dict(window_size=10)
visualizer = dict(line_width=1, alpha=0.5)
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=8)
