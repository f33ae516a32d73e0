# Slide-PVT-S, with the recipe of PVT-S.
# Published: no table entry (no RetinaNet among the released figures).
_base_ = './retinanet_slide_pvt_t_1x_coco.py'

model = dict(backbone=dict(arch='small'))
