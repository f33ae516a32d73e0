# Mask2Former for panoptic maps, SSViT-T, COCO, 50 epochs.
# Published: no table entry (SSViT, arXiv 2405.13335, trains no Mask2Former).
# Our choice: Mask2Former's recipe (see _base_/models) as it is, and the drop path of Mask R-CNN.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = './_base_/models/mask2former_coco_panoptic.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.SSViT',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.1,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    panoptic_head=dict(in_channels=[64, 128, 256, 512]),
)
