# UPerNet, NAT-M, ADE20K, 512x512 crops, 160 000 iterations.
# Published: 45.1 mIoU, 46.4 multi-scale mIoU (NAT, arXiv 2204.07143, ADE20K table "UPerNet"; this
# config tests single-scale).
# Weights: https://shi-labs.com/projects/nat/checkpoints/SEG/nat_mini_upernet.pth
# The recipe is that of the released code (github.com/SHI-Labs/Neighborhood-Attention-Transformer,
# segmentation/): AdamW, 6e-5 for 16 images, weight decay 0.01 but none on norms and position
# biases, linear decay, 1500 warm-up iterations, fp16, drop path 0.2 (0.3 for T, 0.5 for S and B).
# Our choice: dynamic loss scale.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k_512.py',
    './_base_/schedules/ade20k_160k_adamw.py',
    './_base_/ade20k_runtime.py',
]

model = dict(
    backbone=dict(
        type='mmlocalattn.NAT',
        arch='mini',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.2,
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
