# Mask2Former for panoptic maps, Slide-Swin-T, COCO, 50 epochs.
# Published: no table entry (Slide-Transformer, arXiv 2304.04237, trains no Mask2Former).
# Our choice: the recipe of Mask2Former with Swin-T, the host, with its drop path.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = './_base_/models/mask2former_coco_panoptic.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.SlideSwin',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.3,
        window_size=7,
    ),
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
)
