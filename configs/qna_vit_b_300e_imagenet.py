# QnA-ViT-B, with the released recipe, which has 20 warm-up epochs.
# Published: 83.9 top-1 (table of the released models).
_base_ = './qna_vit_t_300e_imagenet.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.5), head=dict(in_channels=768))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=20, end=300, convert_to_iter_based=True),
]
