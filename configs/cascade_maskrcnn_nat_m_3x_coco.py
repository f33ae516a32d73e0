# Cascade Mask R-CNN, NAT-M, COCO, 36 epochs, multi-scale training.
# Published: 50.3 box AP, 43.6 mask AP (NAT, arXiv 2204.07143, COCO table "Cascade Mask R-CNN").
# Weights: https://shi-labs.com/projects/nat/checkpoints/DET/nat_mini_cascademaskrcnn.pth
# The recipe is that of the released code (github.com/SHI-Labs/Neighborhood-Attention-Transformer,
# detection/), as Mask R-CNN 3x: AdamW, 1e-4 for 16 images, weight decay 0.05 but none on norms and
# position biases, fp16, drop path 0.2 (0.3 for T and S, 0.5 for B).
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
        type='mmlocalattn.NAT',
        arch='mini',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.2,
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
