# DiNAT-L from ImageNet-22k weights. Paper, COCO table "Cascade Mask R-CNN": 55.3 box AP,
# 47.8 mask AP. Released recipe, which uses no fp16; bfloat16 is our choice.
_base_ = './cascade_maskrcnn_dinat_m_3x_coco.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.6),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
optim_wrapper = dict(optimizer=dict(lr=7.5e-5), dtype='bfloat16')
