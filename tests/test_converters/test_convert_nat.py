import pytest
import torch

from mmlocalattn.converters.nat import (
    backbone_of,
    convert,
    convert_whole,
    infer_arch,
    infer_options,
)


@pytest.fixture
def released(golden):
    arrays = golden('nat_small_224x256')
    return {
        name[6:]: torch.from_numpy(arrays[name]) for name in arrays if name.startswith('param/')
    }


def test_every_name_becomes_ours(released):
    converted = convert(released)
    assert {name.partition('.')[0] for name in converted} == {'backbone', 'head'}
    assert len(converted) == len(released)


BLOCK, OUR_BLOCK = 'levels.1.blocks.0.', 'stages.1.blocks.0.'
NAMES = {
    'patch_embed.proj.1.weight': 'stem.proj.1.weight',
    'patch_embed.norm.bias': 'stem.norm.bias',
    f'{BLOCK}norm2.weight': f'{OUR_BLOCK}norm2.weight',
    f'{BLOCK}attn.qkv.bias': f'{OUR_BLOCK}attn.qkv.bias',
    f'{BLOCK}attn.proj.weight': f'{OUR_BLOCK}attn.proj.weight',
    f'{BLOCK}attn.rpb': f'{OUR_BLOCK}attn.rel_pos_bias',
    f'{BLOCK}mlp.fc1.weight': f'{OUR_BLOCK}mlp.fc1.weight',
    f'{BLOCK}gamma2': f'{OUR_BLOCK}scale2.weight',
    'levels.0.downsample.reduction.weight': 'stages.1.downsample.conv.weight',
    'levels.0.downsample.norm.weight': 'stages.1.downsample.norm.weight',
}


@pytest.mark.parametrize(('theirs', 'ours'), NAMES.items())
def test_names(released, theirs, ours):
    assert convert(released)[f'backbone.{ours}'] is released[theirs]
    whole = {f'backbone.{name}': tensor for name, tensor in released.items()}
    assert convert_whole(whole)[f'backbone.{ours}'] is released[theirs]


def test_names_of_the_tail(released):
    converted = convert(released)
    assert converted['backbone.output_norms.3.bias'] is released['norm.bias']
    assert converted['head.fc.weight'] is released['head.weight']


def test_names_of_a_whole_model():
    names = ['backbone.norm2.weight', 'neck.fpn_convs.0.conv.bias', 'decode_head.conv_seg.bias']
    whole = {name: torch.zeros(index) for index, name in enumerate(names)}
    converted = convert_whole(whole)
    assert list(converted) == ['backbone.output_norms.2.weight', *names[1:]]
    assert list(backbone_of(whole)) == ['norm2.weight']


def test_other_names_stay():
    others = dict.fromkeys(
        ['levels.0.blocks.0.attn.rpe', 'levels.0.blocks.0.mlp.fc3.bias', 'norm4.bias', 'heads.w'],
        torch.zeros(3),
    )
    assert convert(others) == others
    whole = {f'backbone.{name}': tensor for name, tensor in others.items()}
    assert convert_whole(whole) == whole


def test_what_shapes_show(released):
    first = {name: tensor for name, tensor in released.items() if name[:9] < 'levels.2.'}
    assert infer_arch(first) == {
        'embed_dims': (16, 32),
        'depths': (2, 2),
        'layer_scale': (1e-5, 1e-5),
    }
    plain = {name: tensor for name, tensor in first.items() if 'gamma' not in name}
    assert infer_arch(plain)['layer_scale'] == (None, None)
    assert infer_options(released) == {'kernel_size': 7}
    assert infer_options({'levels.0.blocks.0.attn.rpb': torch.zeros(2, 21, 21)}) == {
        'kernel_size': 11
    }
    other = {'weight': torch.zeros(3)}
    assert infer_arch(other) == {'embed_dims': (), 'depths': (), 'layer_scale': ()}
    assert infer_options(other) == {}
