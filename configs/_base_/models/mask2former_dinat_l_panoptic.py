# Mask2Former for panoptic maps, DiNAT-L from ImageNet-22k weights.
# Released recipe, that of Mask2Former with Swin-L: windows of 11, drop path 0.3, 200 queries, no
# mixed precision.
_base_ = './mask2former_coco_panoptic.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.DiNAT',
        arch='large',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.3,
        kernel_size=11,
        dilations='mask2former',
        pad_small_maps=True,
    ),
    panoptic_head=dict(num_queries=200, in_channels=[192, 384, 768, 1536]),
)
