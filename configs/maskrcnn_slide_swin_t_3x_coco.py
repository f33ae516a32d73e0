# Mask R-CNN, Slide-Swin-T, COCO, 36 epochs, multi-scale training.
# Published: 46.8 box AP, 42.3 mask AP (Slide-Transformer, arXiv 2304.04237, COCO table "Mask
# R-CNN").
# Slide-Transformer's own recipe for dense prediction is not published; this is that of its host,
# Swin (github.com/SwinTransformer/Swin-Transformer-Object-Detection): AdamW, 1e-4 for 16 images,
# weight decay 0.05 but none on norms and position biases, 500 warm-up iterations, steps at epochs
# 27 and 33, the DETR multi-scale augmentation, fp16, shifted windows of 7, drop path 0.2.
# Our choice: dynamic loss scale.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    './_base_/datasets/coco_instance_multiscale.py',
    './_base_/schedules/coco_3x_adamw.py',
    './_base_/coco_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.SlideSwin',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.2,
        window_size=7,
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
