# UPerNet, DiNAT-L from ImageNet-22k weights, ADE20K, 640x640 crops, 160 000 iterations.
# Published: 54.0 mIoU, 54.9 multi-scale mIoU (DiNAT, arXiv 2209.15001, ADE20K table "UPerNet").
# Weights: https://shi-labs.com/projects/dinat/checkpoints/ade20k/upernet_dinat_large.pth
# Released recipe, as NAT, drop path 0.3, no fp16.
# Our choices: bfloat16, and 640-pixel crops and tests, which the name and the dilations of the
# released config say but its data settings do not.
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k_640.py',
    './_base_/schedules/ade20k_160k_adamw.py',
    './_base_/ade20k_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        type='mmlocalattn.DiNAT',
        arch='large',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.3,
        dilations='ade20k_640',
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
optim_wrapper = dict(dtype='bfloat16')
