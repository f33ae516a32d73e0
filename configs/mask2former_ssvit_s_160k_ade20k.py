# SSViT-S, with the recipe of SSViT-T.
# Published: no table entry (as SSViT-T).
_base_ = './mask2former_ssvit_t_160k_ade20k.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.15))
