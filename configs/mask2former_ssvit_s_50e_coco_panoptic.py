# SSViT-S, with the recipe of SSViT-T.
# Published: no table entry (as SSViT-T).
_base_ = './mask2former_ssvit_t_50e_coco_panoptic.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))
