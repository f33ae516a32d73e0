import pytest
import torch

from mmlocalattn.converters.slide_swin import convert, infer_arch, infer_options
from mmlocalattn.layers.window_attention import WindowAttention


@pytest.fixture(params=['slide_swin_small_ws7', 'slide_swin_small_ws56'])
def released(golden, request):
    arrays = {**golden('slide_swin_small_ws7'), **golden(request.param)}
    return {
        name[6:]: torch.from_numpy(arrays[name]) for name in arrays if name.startswith('param/')
    }


def shift(head_dim):
    weight = torch.zeros(head_dim * 9, 1, 3, 3)
    for row in range(len(weight)):
        weight[row, 0, row % 9 // 3, row % 3] = 1
    return weight


def test_every_name_becomes_ours(released):
    derived = {
        'layers.2.blocks.1.attn_mask': torch.zeros(4, 49, 49),
        'layers.2.blocks.1.attn.relative_position_index': torch.zeros(49, 49),
    }
    converted = convert({**released, **derived})
    assert {name.partition('.')[0] for name in converted} == {'backbone', 'head'}
    assert len(converted) == len(released) - 4  # the fixed shift of four blocks


BLOCK, OUR_BLOCK = 'layers.1.blocks.0.', 'backbone.stages.1.blocks.0.'
NAMES = {
    'patch_embed.proj.weight': 'backbone.stem.proj.weight',
    'patch_embed.norm.bias': 'backbone.stem.norm.bias',
    f'{BLOCK}norm2.weight': f'{OUR_BLOCK}norm2.weight',
    f'{BLOCK}attn.proj.weight': f'{OUR_BLOCK}attn.proj.weight',
    f'{BLOCK}mlp.fc1.weight': f'{OUR_BLOCK}mlp.fc1.weight',
    'layers.0.downsample.reduction.weight': 'backbone.stages.1.downsample.reduction.weight',
    'layers.0.downsample.norm.bias': 'backbone.stages.1.downsample.norm.bias',
    'norm.weight': 'backbone.output_norms.3.weight',
    'head.bias': 'head.fc.bias',
}


@pytest.mark.parametrize(('theirs', 'ours'), NAMES.items())
def test_names(released, theirs, ours):
    assert torch.equal(convert(released)[ours], released[theirs])


def test_slide_attention(released):
    converted, theirs, ours = convert(released), f'{BLOCK}attn.', f'{OUR_BLOCK}attn.'
    for part, name in (('shift', 'dep_conv'), ('deform', 'dep_conv1')):
        bias = released[f'{theirs}{name}.bias']  # head_dim * 9 values
        assert torch.equal(converted[f'{ours}{part}.bias'], bias.view(16, 9))
    weight = released[f'{theirs}dep_conv1.weight'].view(16, 9, 3, 3)
    assert torch.equal(converted[f'{ours}deform.weight'], weight)
    table = released[f'{theirs}relative_position_bias_table'].view(2, 3, 3)
    assert torch.equal(converted[f'{ours}rel_pos_bias'], table)
    rows = released[f'{theirs}qkv.weight']  # of both heads, query, key and value of 16 channels
    keys = converted[f'{ours}qkv.weight'][32:64]
    assert torch.equal(keys, torch.cat([rows[16:32], rows[64:80]]))


def test_window_attention(released):
    converted, name = convert(released), 'layers.2.blocks.0.attn.'
    table = released[f'{name}relative_position_bias_table']
    window = (round(len(table) ** 0.5) + 1) // 2
    layer = WindowAttention(64, 2, window)
    prefix = 'backbone.stages.2.blocks.0.attn.'
    layer.load_state_dict(
        {key[len(prefix) :]: value for key, value in converted.items() if key.startswith(prefix)}
    )
    cells = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    index = cells[:, None] - cells + window - 1
    bias = table[index[..., 0] * (2 * window - 1) + index[..., 1]].permute(2, 0, 1)
    assert torch.equal(layer._bias(window, window)[0], bias)
    assert torch.equal(layer.qkv.weight, released[f'{name}qkv.weight'])


def test_what_shapes_show(released):
    assert infer_arch({n: t for n, t in released.items() if n[:8] < 'layers.3'}) == {
        'embed_dims': (16, 32, 64),
        'depths': (2, 2, 2),
    }
    window = {169: 7, 729: 56}[len(released['layers.2.blocks.0.attn.relative_position_bias_table'])]
    expected = {'num_slide_stages': 2, 'kernel_size': 3, 'window_size': window}
    assert infer_options(released) == expected
    assert infer_options({}) == {}


def test_the_fixed_path_must_be_the_shift(released):
    name = 'layers.0.blocks.1.attn.dep_conv.weight'
    assert torch.equal(released[name], shift(16))
    released[name] = released[name] + 0.01
    with pytest.raises(ValueError, match=r'layers\.0\.blocks\.1.* is not the fixed shift'):
        convert(released)


def test_other_names_stay():
    others = dict.fromkeys(['layers.0.blocks.0.attn.scale', 'absolute_pos_embed'], torch.zeros(3))
    assert convert(others) == others
