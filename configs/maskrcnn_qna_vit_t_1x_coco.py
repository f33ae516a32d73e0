# Mask R-CNN, QnA-ViT-T, COCO, 12 epochs.
# Published: no table entry (none in QnA, arXiv 2112.11435, that we could find).
# Our choice, as no recipe is released: Swin Transformer's, AdamW, 1e-4 for 16 images, weight decay
# 0.05 but none on norms, position biases and attention scales, 500 warm-up iterations, steps at
# epochs 8 and 11, mixed precision with dynamic loss scale, drop path as for ImageNet.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    './_base_/schedules/coco_1x_adamw.py',
    './_base_/coco_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.QnAViT',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.05,
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(custom_keys=dict(attention_scale=dict(decay_mult=0.0))),
)
