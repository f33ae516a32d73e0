# DiNAT-T, with the released recipe.
# Published: 48.6 box AP, 43.5 mask AP (COCO table "Mask R-CNN").
# Weights: https://shi-labs.com/projects/dinat/checkpoints/coco/maskrcnn_dinat_tiny.pth
_base_ = './maskrcnn_dinat_m_3x_coco.py'

model = dict(backbone=dict(arch='tiny'))
