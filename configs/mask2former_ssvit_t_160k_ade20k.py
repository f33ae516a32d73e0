# Mask2Former, SSViT-T, ADE20K, 512x512 crops, 160 000 iterations.
# Published: no table entry (SSViT, arXiv 2405.13335, trains no Mask2Former).
# Our choice: Mask2Former's recipe (AdamW, 1e-4 for 16 images, a tenth of it for the backbone,
# weight decay 0.05 but none on norms and embeddings, gradients clipped to norm 0.01) and the drop
# path of classification.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = [
    './_base_/models/mask2former.py',
    './_base_/datasets/ade20k_512_mask2former.py',
    './_base_/schedules/ade20k_160k_mask2former.py',
    './_base_/ade20k_runtime.py',
]

model = dict(
    backbone=dict(
        type='mmlocalattn.SSViT',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        drop_path_rate=0.1,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
)
