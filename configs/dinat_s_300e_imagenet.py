# DiNAT-S, with the released recipe.
# Published: 83.8 top-1 (ImageNet table).
# Weights: https://shi-labs.com/projects/dinat/checkpoints/imagenet1k/dinat_small_in1k_224.pth
_base_ = './dinat_m_300e_imagenet.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.3),
    head=dict(in_channels=768),
)
