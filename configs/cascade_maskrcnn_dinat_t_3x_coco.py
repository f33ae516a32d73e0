# DiNAT-T, with the released recipe.
# Published: 52.2 box AP, 45.1 mask AP (COCO table "Cascade Mask R-CNN").
# Weights: https://shi-labs.com/projects/dinat/checkpoints/coco/cascadedmaskrcnn_dinat_tiny.pth
_base_ = './cascade_maskrcnn_dinat_m_3x_coco.py'

model = dict(backbone=dict(arch='tiny', drop_path_rate=0.3))
