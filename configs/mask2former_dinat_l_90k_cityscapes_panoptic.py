# Mask2Former for panoptic maps, DiNAT-L from ImageNet-22k weights, Cityscapes, 90 000 iterations.
# Published: 67.2 PQ, 44.5 mask AP, 83.4 mIoU (DiNAT, arXiv 2209.15001, table in its
# mask2former/README.md).
# Weights: https://shi-labs.com/projects/dinat/checkpoints/m2f/mask2former_dinat_large_cityscapes_panoptic.pth
# Released recipe, that of Mask2Former with Swin-L: AdamW, 1e-4 for 16 images, polynomial decay,
# windows of 11, drop path 0.3, 200 queries, no mixed precision.
# Data: mmdet has no data set of Cityscapes' panoptic maps. Expected are files in COCO's form, with
# the eight classes of things first, and an image and its map of one name.
# Our choice: the pipelines of mmdet.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = './mask2former_dinat_l_160k_ade20k_panoptic.py'

things, stuff = 8, 11
crop_size = (512, 1024)
model = dict(
    data_preprocessor=dict(
        batch_augments=[dict(_base_.model.data_preprocessor.batch_augments[0], size=crop_size)]
    ),
    panoptic_head=dict(
        num_things_classes=things,
        num_stuff_classes=stuff,
        loss_cls=dict(class_weight=[1.0] * (things + stuff) + [0.1]),
    ),
    panoptic_fusion_head=dict(num_things_classes=things, num_stuff_classes=stuff),
)

train_pipeline = _base_.train_pipeline
train_pipeline[2].scales = [(4096, 1024 * tenths // 10) for tenths in range(5, 21)]
train_pipeline[3].crop_size = crop_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (2048, 1024)
data_root = 'data/cityscapes/'
thing_classes = ['person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle']
stuff_classes = ['road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light']
stuff_classes += ['traffic sign', 'vegetation', 'terrain', 'sky']
metainfo = dict(
    classes=thing_classes + stuff_classes,
    thing_classes=thing_classes,
    stuff_classes=stuff_classes,
)
dataset = dict(type='CocoPanopticDataset', data_root=data_root, metainfo=metainfo)
train_dataloader = dict(
    dataset=dict(
        **dataset,
        ann_file='annotations/cityscapes_panoptic_train.json',
        data_prefix=dict(img='panoptic/train/', seg='annotations/cityscapes_panoptic_train/'),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        **dataset,
        ann_file='annotations/cityscapes_panoptic_val.json',
        data_prefix=dict(img='panoptic/val/', seg='annotations/cityscapes_panoptic_val/'),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    ann_file=data_root + 'annotations/cityscapes_panoptic_val.json',
    seg_prefix=data_root + 'annotations/cityscapes_panoptic_val/',
)
test_evaluator = val_evaluator

train_cfg = dict(max_iters=90000)
param_scheduler = dict(end=90000)
