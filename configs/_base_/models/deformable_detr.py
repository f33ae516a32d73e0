# mmdet's Deformable DETR with its recipe, 16 GPUs x 2 images. A config adds the backbone and the
# neck's `in_channels`.
_base_ = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'

# Older checkpoints are kept because a run that is killed while it writes one resumes from the
# one before.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
auto_scale_lr = dict(enable=False, base_batch_size=32)
