# Mask R-CNN, NAT-M, COCO, 36 epochs, multi-scale training.
# Published: 46.5 box AP, 41.7 mask AP (NAT, arXiv 2204.07143, COCO table "Mask R-CNN").
# Weights: https://shi-labs.com/projects/nat/checkpoints/DET/nat_mini_maskrcnn.pth
# The recipe is that of the released code (github.com/SHI-Labs/Neighborhood-Attention-Transformer,
# detection/): AdamW, 1e-4 for 16 images, weight decay 0.05 but none on norms and position biases,
# 500 warm-up iterations, steps at epochs 27 and 33, the DETR multi-scale augmentation, fp16, drop
# path 0.2 (0.35 for S).
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
        type='mmlocalattn.NAT',
        arch='mini',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.2,
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
