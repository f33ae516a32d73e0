# Slide-PVT-M, with the recipe of PVT-M.
# Published: 44.4 box AP, 40.8 mask AP (COCO table "Mask R-CNN").
_base_ = './maskrcnn_slide_pvt_t_1x_coco.py'

model = dict(backbone=dict(arch='medium', drop_path_rate=0.0))
