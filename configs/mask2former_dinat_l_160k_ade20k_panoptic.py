# Mask2Former for panoptic maps, DiNAT-L from ImageNet-22k weights, ADE20K, 160 000 iterations.
# Published: 49.4 PQ, 35.0 mask AP, 56.3 mIoU (DiNAT, arXiv 2209.15001, table in its
# mask2former/README.md).
# Weights: https://shi-labs.com/projects/dinat/checkpoints/m2f/mask2former_dinat_large_ade20k_panoptic.pth
# Released recipe, that of Mask2Former with Swin-L: AdamW, 1e-4 for 16 images, polynomial decay,
# windows of 11, drop path 0.3, 200 queries, no mixed precision.
# Data: written by tools/dataset_converters/ade20k2coco.py of mmdet.
# Our choice: the pipelines of mmdet.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = './_base_/models/mask2former_dinat_l_panoptic.py'

things, stuff = 100, 50
crop_size = (640, 640)
model = dict(
    data_preprocessor=dict(
        batch_augments=[
            dict(
                type='BatchFixedSizePad',
                size=crop_size,
                img_pad_value=0,
                pad_mask=True,
                mask_pad_value=0,
                pad_seg=True,
                seg_pad_value=255,
            )
        ]
    ),
    panoptic_head=dict(
        num_things_classes=things,
        num_stuff_classes=stuff,
        loss_cls=dict(class_weight=[1.0] * (things + stuff) + [0.1]),
    ),
    panoptic_fusion_head=dict(num_things_classes=things, num_stuff_classes=stuff),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadPanopticAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    dict(
        type='RandomChoiceResize',
        scales=[(2560, 640 * tenths // 10) for tenths in range(5, 21)],
        keep_ratio=True,
    ),
    dict(
        type='RandomCrop',
        crop_size=crop_size,
        crop_type='absolute',
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type='PhotoMetricDistortion'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2560, 640), keep_ratio=True),
    dict(type='LoadPanopticAnnotations'),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
data_root = 'data/ADEChallengeData2016/'
dataset = dict(type='ADE20KPanopticDataset', data_root=data_root)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        **dataset,
        ann_file='ade20k_panoptic_train.json',
        data_prefix=dict(img='images/training/', seg='ade20k_panoptic_train/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        **dataset,
        ann_file='ade20k_panoptic_val.json',
        data_prefix=dict(img='images/validation/', seg='ade20k_panoptic_val/'),
        test_mode=True,
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True,
    type='CocoPanopticMetric',
    ann_file=data_root + 'ade20k_panoptic_val.json',
    seg_prefix=data_root + 'ade20k_panoptic_val/',
)
test_evaluator = val_evaluator

train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=160000, val_interval=5000)
param_scheduler = dict(
    _delete_=True, type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=160000
)
