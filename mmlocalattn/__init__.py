"""Local-attention operators and backbones for the OpenMMLab stack."""

__version__ = '0.1.0'
