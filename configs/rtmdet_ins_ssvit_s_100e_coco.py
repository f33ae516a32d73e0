# SSViT-S, with the recipe of SSViT-T.
# Published: no table entry (as SSViT-T).
_base_ = './rtmdet_ins_ssvit_t_100e_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))
