# mmdet's Mask2Former for panoptic maps with its recipe, which is that of the released code
# (github.com/facebookresearch/Mask2Former): AdamW, 1e-4 for 16 images, a tenth of it for the
# backbone, weight decay 0.05, gradients clipped to norm 0.01, 1024x1024 crops of images scaled by
# 0.1 to 2. A config adds the backbone and the head's `in_channels`.
_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    '../schedules/mask2former_keys.py',
]

optim_wrapper = dict(paramwise_cfg=dict(custom_keys={{_base_.mask2former_keys}}))
