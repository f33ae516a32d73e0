# Mask R-CNN of mmdet with an SSViT-T backbone. A sibling changes `arch`, `drop_path_rate` and the
# neck's `in_channels`.
#
# ImageNet weights (made by tools/convert_checkpoint.py) are given on the command line:
#   --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.prefix=backbone. \
#                 model.backbone.init_cfg.checkpoint=ssvit_tiny.pth
# Without them training starts from random weights.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.SSViT',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.1,
        # The released window rule. scan='fixed' keeps the 224-px windows and is several times
        # cheaper on large images, but it is not the rule the weights were trained with.
        scan='adaptive',
        norm_cfg=dict(type='SyncBN', requires_grad=True),  # as RMT; plain BN in one process
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
