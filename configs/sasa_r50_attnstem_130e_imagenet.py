# SASA-ResNet-50 with attention stem. Paper, table 1: 77.6 top-1, 18.0 M parameters. Recipe of R26.
_base_ = './sasa_r26_130e_imagenet.py'

model = dict(backbone=dict(depth=50, stem='attention'))
