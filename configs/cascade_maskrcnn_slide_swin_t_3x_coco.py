# Cascade Mask R-CNN, Slide-Swin-T, COCO, 36 epochs, multi-scale training.
# Published: 51.1 box AP, 44.3 mask AP (Slide-Transformer, arXiv 2304.04237, COCO table "Cascade
# Mask R-CNN").
# Slide-Transformer's own recipe for dense prediction is not published; this is that of its host,
# Swin (github.com/SwinTransformer/Swin-Transformer-Object-Detection), as Mask R-CNN 3x: AdamW, 1e-4
# for 16 images, weight decay 0.05 but none on norms and position biases, fp16, shifted windows of
# 7, drop path 0.2 (0.3 for B).
# Our choice: dynamic loss scale.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = [
    './_base_/models/cascade_maskrcnn.py',
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
