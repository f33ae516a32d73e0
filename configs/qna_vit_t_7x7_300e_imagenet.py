# QnA-ViT-T with 7x7 windows and the released recipe.
# Published: 82.0 top-1 (table of the released models).
_base_ = './qna_vit_t_300e_imagenet.py'

model = dict(backbone=dict(arch='tiny_7x7'))
