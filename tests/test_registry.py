import importlib
import subprocess
import sys

import pytest
import torch
from mmengine import registry as roots
from mmengine.registry import DefaultScope

import mmlocalattn.registry
from mmlocalattn.registry import MODELS


@pytest.fixture
def our_scope():
    DefaultScope.get_instance('test_registry', scope_name='mmlocalattn')
    yield
    DefaultScope._instance_dict.clear()


def lines_printed(code):
    """What code prints in a fresh process, without what the packages do there."""
    code = f'import functools\nprint = functools.partial(print, ">")\n{code}'
    command = [sys.executable, '-W', 'ignore', '-c', code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line[2:] for line in output.splitlines() if line.startswith('> ')]


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
    assert lines_printed(code) == ['mmlocalattn.backbones.ssvit', '[]']


def test_every_registry_resolves_from_every_scope_without_an_import():
    code = """
from mmengine.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
for scope in ('mmdet', 'mmseg', 'mmpretrain', 'mmlocalattn', 'mmengine'):
    DefaultScope.get_instance(scope, scope_name=scope)
    hook = HOOKS.build(dict(type='mmlocalattn.ExactResumeHook'))
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(dict(
        type='mmlocalattn.LayerDecayOptimWrapperConstructor',
        optim_wrapper_cfg=dict(optimizer=dict(type='AdamW'))))
    print(type(hook).__module__, type(constructor).__module__)
"""
    assert (
        lines_printed(code) == ['mmlocalattn.training.resume mmlocalattn.training.layer_decay'] * 5
    )


def test_the_scope_may_be_left_out_inside_it(our_scope):
    hook = roots.HOOKS.build(dict(type='ExactResumeHook'))
    assert type(hook).__module__ == 'mmlocalattn.training.resume'
    cfg = dict(type='LayerDecayOptimWrapperConstructor', optim_wrapper_cfg={'optimizer': {}})
    constructor = roots.OPTIM_WRAPPER_CONSTRUCTORS.build(cfg)
    assert type(constructor).__module__ == 'mmlocalattn.training.layer_decay'


@pytest.mark.parametrize(
    'name',
    [
        *('HOOKS', 'METRICS', 'MODELS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'TRANSFORMS'),
        'WEIGHT_INITIALIZERS',
    ],
)
def test_each_is_the_child_of_its_root(name):
    child = getattr(mmlocalattn.registry, name)
    with getattr(roots, name).switch_scope_and_registry('mmlocalattn') as registry:
        assert registry is child


def test_others_are_reached_from_the_scope(our_scope):
    import mmcv.transforms

    transform = roots.TRANSFORMS.build(dict(type='LoadImageFromFile'))
    assert type(transform) is mmcv.transforms.LoadImageFromFile


def test_old_configs_find_names_without_a_scope():
    code = """
from mmengine.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
from mmengine.utils import import_modules_from_strings
import_modules_from_strings(['mmlocalattn.engine'])
DefaultScope.get_instance('mmdet', scope_name='mmdet')
print(HOOKS.build(dict(type='ExactResumeHook')).__module__)
print(OPTIM_WRAPPER_CONSTRUCTORS.get('LayerDecayOptimWrapperConstructor').__module__)
"""
    assert lines_printed(code) == [
        'mmlocalattn.training.resume',
        'mmlocalattn.training.layer_decay',
    ]


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
