# SASA-ResNet-38 with attention stem. Paper, table 1: 76.9 top-1, 14.1 M parameters. Recipe of R26.
_base_ = './sasa_r26_130e_imagenet.py'

model = dict(backbone=dict(depth=38, stem='attention'))
