# QnA-ViT-T with 7x7 windows. Paper, table of the released models: 82.0 top-1. Released recipe.
_base_ = './qna_vit_t_300e_imagenet.py'

model = dict(backbone=dict(arch='tiny_7x7'))
