# Cascade Mask R-CNN, SSViT-S, COCO, 36 epochs, multi-scale training.
# Published: 53.8 box AP, 46.6 mask AP (SSViT, arXiv 2405.13335, COCO table "Cascade Mask R-CNN
# 3x").
# SSViT's own recipe is not published; this is RMT's: as Mask R-CNN 3x, 4conv1fc SyncBN box heads
# with GIoU loss, no weight decay on any norm layer, 4e-4 (2e-4 for B).
# Our choices: 8 GPUs (RMT does not say), dynamic loss scale.
_base_ = [
    './_base_/models/cascade_maskrcnn_ssvit.py',
    './_base_/datasets/coco_instance_multiscale.py',
    './_base_/schedules/coco_3x_adamw.py',
    './_base_/coco_runtime.py',
]

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0))
