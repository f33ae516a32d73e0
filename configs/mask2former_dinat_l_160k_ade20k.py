# Mask2Former, DiNAT-L from ImageNet-22k weights, ADE20K, 640x640 crops, 160 000 iterations.
# Published: 58.1 multi-scale mIoU (DiNAT, arXiv 2209.15001, table in its mask2former/README.md;
# this config tests single-scale).
# Weights: https://shi-labs.com/projects/dinat/checkpoints/m2f/mask2former_dinat_large_ade20k_semantic.pth
# Released recipe, that of Mask2Former with Swin-L: windows of 11, drop path 0.3, no mixed
# precision. Our choice: crops of one class up to 75 %, as mmsegmentation has it, and not 100 %.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = [
    './_base_/models/mask2former.py',
    './_base_/datasets/ade20k_640_mask2former.py',
    './_base_/schedules/ade20k_160k_mask2former.py',
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
        kernel_size=11,
        dilations='mask2former',
        pad_small_maps=True,
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
)
