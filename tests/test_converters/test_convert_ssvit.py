import pytest
import torch

from mmlocalattn.backbones.ssvit import SSViT
from mmlocalattn.converters.ssvit import convert, infer_arch


@pytest.fixture
def released(golden):
    arrays = golden('ssvit_small_224x256')
    return {
        name[6:]: torch.from_numpy(arrays[name]) for name in arrays if name.startswith('param/')
    }


def test_every_name_becomes_ours(released):
    converted = convert(released)
    assert {name.partition('.')[0] for name in converted} == {'backbone', 'neck', 'head'}
    derived = [name for name in released if name.endswith('RoPE.angle')]
    assert len(derived) == 4
    assert len(converted) == len(released) - len(derived)


@pytest.mark.parametrize(
    ('theirs', 'ours', 'shape'),
    [
        ('patch_embed.proj.10.running_var', 'backbone.stem.10.running_var', (16,)),
        ('layers.0.downsample.reduction.weight', 'backbone.stages.1.downsample.conv.weight', None),
        ('layers.2.downsample.norm.bias', 'backbone.stages.3.downsample.norm.bias', None),
        ('layers.1.blocks.1.norm2.norm.weight', 'backbone.stages.1.blocks.1.norm2.weight', None),
        (
            'layers.1.blocks.1.attn.qkv.weight',
            'backbone.stages.1.blocks.1.attn.qkv.weight',
            (96, 32),
        ),
        ('layers.1.blocks.0.attn.lepe.weight', 'backbone.stages.1.blocks.0.attn.lepe.weight', None),
        ('layers.1.blocks.0.attn.out_proj.bias', 'backbone.stages.1.blocks.0.attn.proj.bias', None),
        ('layers.0.blocks.0.ffn.fc1.weight', 'backbone.stages.0.blocks.0.ffn.fc1.weight', (64, 16)),
        (
            'layers.0.blocks.0.ffn.dwconv.weight',
            'backbone.stages.0.blocks.0.ffn.dwconv.weight',
            None,
        ),
        ('layers.0.blocks.1.pos.weight', 'backbone.stages.0.blocks.1.pos_conv.weight', None),
        ('layers.2.blocks.1.gamma_2', 'backbone.stages.2.blocks.1.scale2.weight', (64,)),
        ('proj.weight', 'neck.proj.weight', (64, 96, 1, 1)),
        ('norm.running_mean', 'neck.norm.running_mean', None),
        ('head.weight', 'head.fc.weight', (10, 64)),
    ],
)
def test_names_and_shapes(released, theirs, ours, shape):
    tensor = convert(released)[ours]
    assert tensor.shape == (shape or released[theirs].shape)
    assert torch.equal(tensor.flatten(), released[theirs].flatten())


def test_other_names_stay():
    tensor = torch.zeros(3)
    others = {
        'layers.0.blocks.0.attn.rpb': tensor,
        'layers.0.RoPE.angles': tensor,
        'heads.w': tensor,
    }
    assert convert(others) == others


def test_linear_weights_of_other_shapes_stay():
    weight = torch.zeros(8, 4, 3, 3)
    (converted,) = convert({'layers.0.blocks.0.attn.qkv.weight': weight}).values()
    assert converted.shape == weight.shape


def test_arch_from_shapes(released):
    assert infer_arch(released) == {'embed_dims': (16, 32, 64, 96), 'depths': (2, 2, 2, 2)}
    assert infer_arch({'weight': torch.zeros(3)}) == {'embed_dims': (), 'depths': ()}


def test_named_archs_have_different_shapes():
    found = {(arch['embed_dims'], arch['depths']) for arch in SSViT.arch_settings.values()}
    assert len(found) == len(SSViT.arch_settings)
