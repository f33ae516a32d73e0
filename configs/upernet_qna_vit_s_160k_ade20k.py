# QnA-ViT-S, with the recipe of T.
# Published: no table entry (none in the paper that we could find).
_base_ = './upernet_qna_vit_t_160k_ade20k.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.2))
