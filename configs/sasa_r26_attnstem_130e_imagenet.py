# SASA-ResNet-26 with attention stem. Paper, table 1: 74.8 top-1, 10.3 M parameters. Recipe of R26.
_base_ = './sasa_r26_130e_imagenet.py'

model = dict(backbone=dict(stem='attention'))
