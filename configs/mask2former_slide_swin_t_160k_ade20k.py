# Mask2Former, Slide-Swin-T, ADE20K, 512x512 crops, 160 000 iterations.
# Published: no table entry (Slide-Transformer, arXiv 2304.04237, trains no Mask2Former).
# Our choice: the recipe of Mask2Former with Swin-T, the host, with its drop path.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = [
    './_base_/models/mask2former.py',
    './_base_/datasets/ade20k_512_mask2former.py',
    './_base_/schedules/ade20k_160k_mask2former.py',
    './_base_/ade20k_runtime.py',
]

model = dict(
    backbone=dict(
        type='mmlocalattn.SlideSwin',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.3,
        window_size=7,
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
