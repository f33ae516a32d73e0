# QnA-ViT-S, with the released recipe.
# Published: 83.2 top-1 (table of the released models).
_base_ = './qna_vit_t_300e_imagenet.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.2))
