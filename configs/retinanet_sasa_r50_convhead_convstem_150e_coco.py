# RetinaNet, SASA-ResNet-50 with convolution stem, convolutional FPN and head, COCO, 150 epochs.
# Published: 36.8 box AP (SASA, arXiv 1906.05909, table 2, with 25.9 M parameters for 90 classes).
# The paper's recipe (appendix A.3): batch 64, learning rate from 0 to 0.12 in one epoch, then a
# cosine, multi-scale jitter, crops of at most 640 pixels, flips.
# Our choices, where the paper is silent: SGD with momentum 0.9 and weight decay 1e-4; jitter of 0.8
# to 1.2, which mmdet's 640-pixel RetinaNet (configs/nas_fpn) has; SyncBN; 8 GPUs.
_base_ = [
    './_base_/models/retinanet_sasa.py',
    './_base_/datasets/coco_detection_640.py',
    './_base_/coco_runtime.py',
]

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=150, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        by_epoch=True,
        begin=1,
        end=150,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.12, momentum=0.9, weight_decay=1e-4),
)
# 8 GPUs x 8 images.
auto_scale_lr = dict(enable=False, base_batch_size=64)
