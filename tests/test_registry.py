import importlib
import subprocess
import sys

import pytest
import torch

from mmlocalattn.registry import MODELS


def test_registered_names():
    for name in ('NAT', 'DiNAT', 'QnAFPN', 'QnAViT', 'SSViT', 'SSViTNeck'):
        assert MODELS.get(name).__name__ == name


def test_the_name_alone_imports_the_package_and_no_other():
    code = """
import sys
from mmengine.registry import MODELS
print(type(MODELS.build(dict(type='mmlocalattn.SSViT', arch='tiny'))).__module__)
print([name for name in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain') if name in sys.modules])
"""
    command = [sys.executable, '-W', 'ignore', '-c', code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == ['mmlocalattn.backbones.ssvit', '[]']


@pytest.mark.parametrize('package', ['mmdet', 'mmseg', 'mmpretrain'])
def test_other_scopes_build_our_types(package):
    models = importlib.import_module(f'{package}.registry').MODELS
    arch = dict(embed_dims=(8, 8), depths=(1, 1), num_heads=(1, 1), mlp_ratios=(2, 2))
    backbone = models.build(dict(type='mmlocalattn.SSViT', arch=arch, out_indices=(0, 1)))
    neck = models.build(dict(type='mmlocalattn.SSViTNeck', in_channels=8, out_channels=16))
    assert neck(backbone(torch.randn(2, 3, 16, 24)))[0].shape == (2, 16)


def test_configs_are_not_edited():
    cfg = dict(
        type='SSViT',
        arch=dict(embed_dims=[8], depths=[1], num_heads=[1], mlp_ratios=[2]),
        out_indices=[0],
    )
    before = repr(cfg)
    (output,) = MODELS.build(cfg)(torch.randn(1, 3, 8, 8))
    assert output.shape == (1, 8, 2, 2)
    assert repr(cfg) == before
