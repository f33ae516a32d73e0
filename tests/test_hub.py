"""Backbones by name, without configs and without mmcv."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmlocalattn import hub
from mmlocalattn.adapt import BACKBONES
from mmlocalattn.backbones import SSViT

ROOT = Path(__file__).parents[1]
BLOCKED = ['mmcv', 'mmdet', 'mmpretrain', 'mmseg', 'natten', 'timm', 'transformers']
SMALLEST = {entry.name: name for name, entry in reversed(BACKBONES.items())}
ARCH = dict(
    embed_dims=(8, 16, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), mlp_ratios=(1, 1, 1, 1)
)


def small(**options) -> hub.FeatureListNet:
    torch.manual_seed(0)
    return hub.create('ssvit_t', arch=ARCH, **options)


@pytest.mark.parametrize('name', SMALLEST.values())
def test_feature_info_is_true_for_every_family(name: str) -> None:
    with torch.device('meta'):
        model = hub.create(name, features_only=True, in_chans=4, out_indices=(1, 2, 3))
        maps = model(torch.zeros(1, 4, 65, 127))
    assert isinstance(maps, list)
    info = model.feature_info
    assert info.channels() == [each.shape[1] for each in maps]
    assert info.reduction() == [8, 16, 32]
    assert [each.shape[2:] for each in maps] == [(9, 16), (5, 8), (3, 4)]
    for index, module in enumerate(info.module_name([0, 1, 2, 3])):
        assert model.get_submodule(module).out_channels == info.channels(index)


def test_feature_info_has_the_interface_of_timm() -> None:
    info = small(out_indices=(0, 2)).feature_info
    assert info.out_indices == (0, 2)
    assert len(info) == 3
    assert info.channels() == [8, 16]
    assert info.channels(1) == 16
    assert info.reduction([2, 1]) == [16, 8]
    assert info[0] == dict(num_chs=8, reduction=4, module='backbone.stages.0', index=0)
    assert info.get_dicts(['num_chs', 'reduction']) == [
        dict(num_chs=8, reduction=4),
        dict(num_chs=16, reduction=16),
    ]
    assert info.get_dicts(idx=1) == info[1]


def test_names() -> None:
    assert hub.list_models() == list(BACKBONES)
    assert hub.list_models('ssvit_*') == ['ssvit_t', 'ssvit_s', 'ssvit_b', 'ssvit_l']


@pytest.mark.parametrize(
    ('name', 'near'),
    [('ssvit-s', 'ssvit_s'), ('slide_swin_tiny', 'slide_swin_t'), ('resnet50', 'sasa_r50')],
)
def test_an_unknown_name_brings_those_that_are_close(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"no backbone is called '{name}': take .*\b{near}\b"):
        hub.create(name)


def test_options_go_to_the_class() -> None:
    model = small(drop_path_rate=0.0, output_norm=False, frozen_stages=1)
    assert isinstance(model.backbone, SSViT)
    assert not any('output_norms' in name for name, _ in model.named_parameters())
    assert not next(model.backbone.stem.parameters()).requires_grad
    with pytest.raises(TypeError, match='no_such_option'):
        small(no_such_option=1)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(features_only=False), 'a classifier is built from a config'),
        (dict(pretrained=True), r'pretrained must be a name of released weights, .*, got True'),
        (dict(out_indices=(3, 4)), r'out_indices must be increasing stage numbers in 0\.\.3'),
    ],
)
def test_arguments_that_do_not_fit(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_pretrained(tmp_path: Path) -> None:
    """What a conversion writes: no output norms, and the last stages are not always wanted."""
    path = tmp_path / 'released.pth'
    released = small(output_norm=False).eval()
    weights = {name: value + 1 for name, value in released.state_dict().items()}
    torch.save(dict(state_dict=weights | {'head.fc.weight': torch.zeros(5, 16)}), path)
    torch.manual_seed(1)
    model = hub.create('ssvit_t', arch=ARCH, out_indices=(0, 1), pretrained=path).eval()
    loaded = model.state_dict()
    assert loaded.keys() - weights.keys() == {
        f'backbone.output_norms.{index}.{name}' for index in (0, 1) for name in ('weight', 'bias')
    }
    assert all(torch.equal(loaded[name], weights[name]) for name in loaded.keys() & weights.keys())


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / 'gray.pth'
    torch.save(small(in_chans=1).state_dict(), path)
    with pytest.raises(ValueError, match=r"gray\.pth' .* has shape .* in the checkpoint and"):
        small(pretrained=path)
    with pytest.raises(FileNotFoundError, match=r"missing\.pth' does not exist"):
        small(pretrained=tmp_path / 'missing.pth')


def test_neither_mmcv_nor_a_toolbox_is_needed(tmp_path: Path) -> None:
    path = tmp_path / 'weights.pth'
    torch.save(small().state_dict(), path)
    script = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {BLOCKED}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block())
import mmlocalattn.ops, mmlocalattn.layers, mmlocalattn.backbones, mmlocalattn.hub
import torch
from mmlocalattn.compat.natten import na2d

model = mmlocalattn.hub.create('ssvit_t', arch={ARCH}, pretrained={str(path)!r})
print([tuple(each.shape) for each in model(torch.zeros(1, 3, 33, 40))])
print(tuple(na2d(*torch.zeros(3, 1, 5, 6, 2, 4), kernel_size=3).shape))
print(sorted(set({BLOCKED}) & sys.modules.keys()))
"""
    run = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        '[(1, 8, 9, 10), (1, 16, 5, 5), (1, 16, 3, 3), (1, 16, 2, 2)]',
        '(1, 5, 6, 2, 4)',
        '[]',
    ]
