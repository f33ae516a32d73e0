# DiNAT-L from ImageNet-22k weights. Released recipe, which uses no fp16; our choice: bfloat16.
# Published: 55.3 box AP, 47.8 mask AP (COCO table "Cascade Mask R-CNN").
# Weights: https://shi-labs.com/projects/dinat/checkpoints/coco/cascadedmaskrcnn_dinat_large.pth
_base_ = './cascade_maskrcnn_dinat_m_3x_coco.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.6),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
optim_wrapper = dict(optimizer=dict(lr=7.5e-5), dtype='bfloat16')
