# Slide-PVT-S. Paper: no table of RetinaNet is among its released figures. PVT-S recipe.
_base_ = './retinanet_slide_pvt_t_1x_coco.py'

model = dict(backbone=dict(arch='small'))
