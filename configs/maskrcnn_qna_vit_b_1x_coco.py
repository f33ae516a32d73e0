# QnA-ViT-B. No table of the paper (Paper: arXiv 2112.11435) that we could find has it.
_base_ = './maskrcnn_qna_vit_t_1x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
