# RTMDet-Ins-L, Slide-Swin-T, COCO, 100 epochs.
# Published: no table entry (Slide-Transformer, arXiv 2304.04237, trains no RTMDet).
# Our choice: mmdet's recipe for RTMDet-L with Swin-B (AdamW, 1e-3 for 128 images, weight decay 0.05
# but none on norms and biases, 640x640 images with mosaic and mixup), and the drop path of its Mask
# R-CNN.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = './_base_/models/rtmdet_ins.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.SlideSwin',
        arch='tiny',
        out_indices=(1, 2, 3),
        output_norm=True,
        drop_path_rate=0.2,
        window_size=7,
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
