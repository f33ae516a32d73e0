# QnA-ViT-S. Paper, table of the released models: 83.2 top-1. Released recipe.
_base_ = './qna_vit_t_300e_imagenet.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.2))
