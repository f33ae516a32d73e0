# SASA-ResNet-38. Paper, table 1: 77.1 top-1, 14.1 M parameters. Recipe of R26.
_base_ = './sasa_r26_130e_imagenet.py'

model = dict(backbone=dict(depth=38))
