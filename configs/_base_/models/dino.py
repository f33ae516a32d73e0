# mmdet's DINO with maps of strides 8, 16, 32 and 64 and its recipe, 8 GPUs x 2 images. A config
# adds the backbone and the neck's `in_channels`.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

# Older checkpoints are kept because a run that is killed while it writes one resumes from the
# one before.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
auto_scale_lr = dict(enable=False, base_batch_size=16)
