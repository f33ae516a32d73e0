# SSViT-S, with the recipe of SSViT-T.
# Published: no table entry (as SSViT-T).
_base_ = './deformable_detr_ssvit_t_50e_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))
