# DiNAT-B, with the released recipe.
# Published: 84.4 top-1 (ImageNet table).
# Weights: https://shi-labs.com/projects/dinat/checkpoints/imagenet1k/dinat_base_in1k_224.pth
_base_ = './dinat_m_300e_imagenet.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5),
    head=dict(in_channels=1024),
)
