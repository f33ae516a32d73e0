# RetinaNet, QnA-ViT-T, COCO, 12 epochs.
# Published: no table entry (none in QnA, arXiv 2112.11435, that we could find).
# Our choice, as no recipe is released: that of maskrcnn_qna_vit_t_1x_coco.py.
# RetinaNet does not use the stride-4 map, so the backbone does not return it (its output norm would
# get no gradient, which DistributedDataParallel rejects).
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    './_base_/schedules/coco_1x_adamw.py',
    './_base_/coco_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.QnAViT',
        arch='tiny',
        out_indices=(1, 2, 3),
        output_norm=True,
        drop_path_rate=0.05,
    ),
    neck=dict(in_channels=[128, 256, 512], start_level=0),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(custom_keys=dict(attention_scale=dict(decay_mult=0.0))),
)
