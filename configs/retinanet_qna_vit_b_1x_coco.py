# QnA-ViT-B, with the recipe of T.
# Published: no table entry (none in the paper that we could find).
_base_ = './retinanet_qna_vit_t_1x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5),
    neck=dict(in_channels=[192, 384, 768]),
)
