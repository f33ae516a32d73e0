# SASA-ResNet-50, with the recipe of R26.
# Published: 77.4 top-1 (table 1, with 18.0 M parameters).
_base_ = './sasa_r26_130e_imagenet.py'

model = dict(backbone=dict(depth=50))
