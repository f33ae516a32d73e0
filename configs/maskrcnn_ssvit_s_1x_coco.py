# SSViT-S, with the recipe of RMT-S.
# Published: 49.4 box AP, 44.0 mask AP (COCO table "Mask R-CNN 1x").
_base_ = './maskrcnn_ssvit_t_1x_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))
