# DETR, QnA-ViT-T, COCO, 150 epochs.
# Published: no table entry (QnA, arXiv 2112.11435, trains DETR with this backbone; we could not
# find its numbers, nor its recipe).
# Our choice: mmdet's DETR as it is, with its recipe for R-50 (AdamW, 1e-4, a tenth of it for the
# backbone, weight decay 1e-4, step at epoch 100, gradients clipped to norm 0.1, 8 GPUs x 2 images),
# the last map of the backbone, and drop path as for ImageNet. Without ImageNet weights (see
# _base_/models/maskrcnn_ssvit.py) it hardly converges.
_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlocalattn.QnAViT',
        arch='tiny',
        out_indices=(3,),
        output_norm=True,
        drop_path_rate=0.05,
    ),
    neck=dict(in_channels=[512]),
)
# Older checkpoints are kept because a run that is killed while it writes one resumes from the
# one before.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
auto_scale_lr = dict(enable=False, base_batch_size=16)
