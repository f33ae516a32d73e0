# SASA-ResNet-26 with attention stem and the recipe of R26.
# Published: 74.8 top-1 (table 1, with 10.3 M parameters).
_base_ = './sasa_r26_130e_imagenet.py'

model = dict(backbone=dict(stem='attention'))
