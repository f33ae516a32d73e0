"""Classifiers of Slide-Swin to ours."""

from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint

from mmlocalattn.converters.convert import FAMILIES, convert_checkpoint
from mmlocalattn.training import read_checkpoint

ARCH = {
    'embed_dims': [16, 32, 64, 128],
    'depths': [2, 2, 2, 2],
    'num_heads': [1, 2, 2, 4],
    'mlp_ratios': [4, 4, 4, 4],
}


@pytest.fixture
def released(golden) -> dict[str, torch.Tensor]:
    """A whole classifier: the last stage, which is not in tests/data, is twice as wide as the
    third."""
    arrays = golden('slide_swin_small_ws7')
    weights = {
        name[6:]: torch.from_numpy(arrays[name]) for name in arrays if name.startswith('param/')
    }
    for name, tensor in list(weights.items()):
        if name.startswith('layers.2.blocks.'):
            table = name.endswith('relative_position_bias_table')
            shape = [tensor.shape[0], 4] if table else [2 * side for side in tensor.shape]
            weights[name.replace('layers.2', 'layers.3')] = torch.randn(shape)
    weights['layers.2.downsample.norm.weight'] = torch.ones(256)
    weights['layers.2.downsample.norm.bias'] = torch.zeros(256)
    weights['layers.2.downsample.reduction.weight'] = torch.randn(128, 256)
    return weights


def run(weights: dict, folder: Path, family: str = 'slide_swin') -> dict:
    torch.save({'model': weights}, folder / 'released.pth')
    convert_checkpoint(family, folder / 'released.pth', folder / 'ours.pth', ARCH)
    return read_checkpoint(folder / 'ours.pth')


def fails(weights: dict, folder: Path, message: str, **options: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(weights, folder, **options)
    assert not (folder / 'ours.pth').exists()


def test_result_loads_whole_in_a_classifier(released, tmp_path):
    from mmpretrain.registry import MODELS

    buffers = {
        'layers.2.blocks.1.attn_mask': torch.zeros(4, 49, 49),
        'layers.2.blocks.1.attn.relative_position_index': torch.zeros(49, 49, dtype=torch.int64),
    }
    meta = run({**released, **buffers}, tmp_path)['meta']
    assert (meta['num_slide_stages'], meta['kernel_size'], meta['window_size']) == (2, 3, 7)
    backbone = dict(type='mmlocalattn.SlideSwin', arch=ARCH, out_indices=(3,))
    head = dict(type='LinearClsHead', num_classes=10, in_channels=128)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            dict(
                type='ImageClassifier',
                backbone=backbone,
                neck=dict(type='GlobalAveragePooling'),
                head=head,
            )
        )
    load_checkpoint(model, str(tmp_path / 'ours.pth'), map_location='cpu', strict=True)
    deform = model.backbone.stages[1].blocks[0].attn.deform['weight']
    assert torch.equal(
        deform.flatten(0, 1)[:, None], released['layers.1.blocks.0.attn.dep_conv1.weight']
    )


def test_every_difference_is_an_error(released, tmp_path):
    del released['layers.3.blocks.1.attn.relative_position_bias_table']
    released['layers.0.blocks.0.attn.rpe'] = torch.zeros(2)
    fails(released, tmp_path, r'missing +backbone\.stages\.3\.blocks\.1\.attn\.rel_pos_bias')
    fails(released, tmp_path, r'unexpected +layers\.0\.blocks\.0\.attn\.rpe')


def test_a_trained_shift_is_an_error(released, tmp_path):
    released['layers.0.blocks.0.attn.dep_conv.weight'][4] += 0.5
    fails(released, tmp_path, 'is not the fixed shift')


def test_other_families_are_told_apart(released, golden, tmp_path):
    fails(released, tmp_path, 'it looks like slide_swin', family='nat')
    ssvit = {name[6:]: torch.from_numpy(a) for name, a in golden('ssvit_small_224x256').items()}
    fails(ssvit, tmp_path, 'not a checkpoint of slide_swin: it looks like ssvit')


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base'])
def test_the_arch_is_found_by_shapes(arch):
    family = FAMILIES['slide_swin']
    settings = family.backbone.arch_settings[arch]
    weights = {
        f'layers.{stage}.blocks.{block}.norm1.weight': torch.empty(dim)
        for stage, (dim, depth) in enumerate(zip(settings['embed_dims'], settings['depths']))
        for block in range(depth)
    }
    assert family.find_arch(weights) == arch
