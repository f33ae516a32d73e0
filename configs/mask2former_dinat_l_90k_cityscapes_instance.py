# Mask2Former for instances, DiNAT-L from ImageNet-22k weights, Cityscapes, 90 000 iterations.
# Published: 45.1 mask AP (DiNAT, arXiv 2209.15001, table in its mask2former/README.md).
# Weights: https://shi-labs.com/projects/dinat/checkpoints/m2f/mask2former_dinat_large_cityscapes_instance.pth
# Released recipe, that of Mask2Former with Swin-L: AdamW, 1e-4 for 16 images, polynomial decay,
# windows of 11, drop path 0.3, 200 queries, no mixed precision.
# Data: written by tools/dataset_converters/cityscapes.py of mmdet.
# Our choice: the pipelines of mmdet.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = './_base_/models/mask2former_coco.py'

things, stuff = 8, 0
crop_size = (512, 1024)
model = dict(
    data_preprocessor=dict(
        batch_augments=[
            dict(
                type='BatchFixedSizePad',
                size=crop_size,
                img_pad_value=0,
                pad_mask=True,
                mask_pad_value=0,
                pad_seg=False,
                seg_pad_value=255,
            )
        ]
    ),
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.DiNAT',
        arch='large',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.3,
        kernel_size=11,
        dilations='mask2former',
        pad_small_maps=True,
    ),
    panoptic_head=dict(
        num_queries=200,
        in_channels=[192, 384, 768, 1536],
        num_things_classes=things,
        num_stuff_classes=stuff,
        loss_cls=dict(class_weight=[1.0] * (things + stuff) + [0.1]),
    ),
    panoptic_fusion_head=dict(num_things_classes=things, num_stuff_classes=stuff),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='RandomChoiceResize',
        scales=[(4096, 1024 * tenths // 10) for tenths in range(5, 21)],
        keep_ratio=True,
    ),
    dict(
        type='RandomCrop',
        crop_size=crop_size,
        crop_type='absolute',
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True),
    dict(type='PhotoMetricDistortion'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 1024), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
data_root = 'data/cityscapes/'
dataset = dict(type='CityscapesDataset', data_root=data_root)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        **dataset,
        ann_file='annotations/instancesonly_filtered_gtFine_train.json',
        data_prefix=dict(img='leftImg8bit/train/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        **dataset,
        ann_file='annotations/instancesonly_filtered_gtFine_val.json',
        data_prefix=dict(img='leftImg8bit/val/'),
        test_mode=True,
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instancesonly_filtered_gtFine_val.json')
test_evaluator = val_evaluator

train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=90000, val_interval=5000)
param_scheduler = dict(
    _delete_=True, type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=90000
)
