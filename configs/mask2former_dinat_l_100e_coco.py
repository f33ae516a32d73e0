# Mask2Former for instances, DiNAT-L from ImageNet-22k weights, COCO, 100 epochs.
# Published: 50.8 mask AP (DiNAT, arXiv 2209.15001, table in its mask2former/README.md).
# Weights: https://shi-labs.com/projects/dinat/checkpoints/m2f/mask2former_dinat_large_coco_instance.pth
# Released recipe, that of Mask2Former with Swin-L: windows of 11, drop path 0.3, 200 queries, no
# mixed precision, steps at 655 556 and 710 184 of 737 500 iterations.
# Our choice: the pipelines of mmdet.
# ImageNet weights: see _base_/models/maskrcnn_ssvit.py.
_base_ = './_base_/models/mask2former_dinat_l.py'

max_iters = 737500
interval = 5000
train_cfg = dict(
    max_iters=max_iters, dynamic_intervals=[(max_iters // interval * interval + 1, max_iters)]
)
param_scheduler = dict(end=max_iters, milestones=[655556, 710184])
