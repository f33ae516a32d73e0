# QnA-ViT-S. No table of the paper (Paper: arXiv 2112.11435) that we could find has it.
_base_ = './upernet_qna_vit_t_160k_ade20k.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.2))
