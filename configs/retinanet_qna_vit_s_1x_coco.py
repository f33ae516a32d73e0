# QnA-ViT-S. No table of the paper (Paper: arXiv 2112.11435) that we could find has it.
_base_ = './retinanet_qna_vit_t_1x_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.2))
