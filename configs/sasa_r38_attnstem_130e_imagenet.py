# SASA-ResNet-38 with attention stem and the recipe of R26.
# Published: 76.9 top-1 (table 1, with 14.1 M parameters).
_base_ = './sasa_r26_130e_imagenet.py'

model = dict(backbone=dict(depth=38, stem='attention'))
