# Mask2Former for instances, DiNAT-L from ImageNet-22k weights, Cityscapes, 90 000 iterations.
# Published: 45.1 mask AP (DiNAT, arXiv 2209.15001, table in its mask2former/README.md).
# Weights: https://shi-labs.com/projects/dinat/checkpoints/m2f/mask2former_dinat_large_cityscapes_instance.pth
# Released recipe, that of Mask2Former with Swin-L: AdamW, 1e-4 for 16 images, polynomial decay,
# windows of 11, drop path 0.3, 200 queries, no mixed precision.
# Data: written by tools/dataset_converters/cityscapes.py of mmdet.
# Our choice: the pipelines of mmdet.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = './mask2former_dinat_l_160k_ade20k_instance.py'

things, stuff = 8, 0
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
dataset = dict(type='CityscapesDataset', data_root=data_root)
train_dataloader = dict(
    dataset=dict(
        **dataset,
        ann_file='annotations/instancesonly_filtered_gtFine_train.json',
        data_prefix=dict(img='leftImg8bit/train/'),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        **dataset,
        ann_file='annotations/instancesonly_filtered_gtFine_val.json',
        data_prefix=dict(img='leftImg8bit/val/'),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instancesonly_filtered_gtFine_val.json')
test_evaluator = val_evaluator

train_cfg = dict(max_iters=90000)
param_scheduler = dict(end=90000)
