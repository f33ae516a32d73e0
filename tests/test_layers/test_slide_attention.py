import copy
import io

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from mmlocalattn.layers.slide_attention import SlideAttention
from mmlocalattn.ops.slide import shift_kernel, slide_attention


def merged(layer):
    layer = copy.deepcopy(layer)
    layer.merge()
    return layer


@pytest.mark.parametrize('kernel_size', [3, 5])
def test_is_the_operator_between_projections(kernel_size):
    layer, x = SlideAttention(16, 2, kernel_size), torch.randn(2, 10, 13, 16)
    query, key, value = layer.qkv(x).unflatten(-1, (3, 2, 8)).unbind(3)
    output = slide_attention(
        query,
        key,
        value,
        shift_kernel(8, kernel_size) + layer.deform.weight,
        layer.shift.bias + layer.deform.bias,
        layer.rel_pos_bias,
    )
    torch.testing.assert_close(layer(x), layer.proj(output.flatten(3)))


@pytest.mark.golden('slide_attention_*.npz')
def test_equals_the_released_layer(golden, golden_file):
    arrays = {name: torch.from_numpy(array) for name, array in golden(golden_file.stem).items()}
    height, width = arrays['hw'].tolist()
    kernel_size = arrays['param/dep_conv.weight'].shape[-1]
    layer = SlideAttention(32, 2, kernel_size)
    names = {
        'qkv.weight': 'qkv.weight',
        'qkv.bias': 'qkv.bias',
        'proj.weight': 'proj.weight',
        'proj.bias': 'proj.bias',
        'shift.bias': 'dep_conv.bias',
        'deform.weight': 'dep_conv1.weight',
        'deform.bias': 'dep_conv1.bias',
        'rel_pos_bias': 'relative_position_bias_table',
    }
    assert torch.equal(layer.shift_weight.flatten(0, 1)[:, None], arrays['param/dep_conv.weight'])
    for key in ('param', 'grad_param'):  # there, query, key and value of a head are neighbors
        for name in ('qkv.weight', 'qkv.bias'):
            rows = arrays[f'{key}/{name}'].unflatten(0, (2, 3, 16))
            arrays[f'{key}/{name}'] = rows.transpose(0, 1).flatten(0, 2)
    parameters = dict(layer.named_parameters())
    state = {
        ours: arrays[f'param/{theirs}'].view_as(parameters[ours]) for ours, theirs in names.items()
    }
    layer.load_state_dict(state)
    x = arrays['input'].unflatten(1, (height, width)).requires_grad_()
    for form in (layer, merged(layer)):
        y = form(x)
        error = (y.flatten(1, 2) - arrays['output']).abs().max()
        assert error < 1e-4 * arrays['output'].abs().max()
    layer(x).backward(arrays['grad_output'].unflatten(1, (height, width)))
    grads = {f'grad_param/{names[name]}': p.grad for name, p in parameters.items()}
    for name, grad in {'grad_input': x.grad, **grads}.items():
        expected = arrays[name].view_as(grad)
        assert (grad - expected).abs().max() < 1e-3 * expected.abs().max(), name


def test_merging_keeps_the_output_and_shrinks_the_state():
    layer, x = SlideAttention(32, 2, 3), torch.randn(2, 9, 12, 32)
    one = merged(layer)
    torch.testing.assert_close(one(x), layer(x), rtol=1e-5, atol=1e-5)
    assert set(layer.state_dict()) - set(one.state_dict()) == {
        'shift.bias',
        'deform.weight',
        'deform.bias',
    }
    assert set(one.state_dict()) - set(layer.state_dict()) == {'merged.weight', 'merged.bias'}
    sizes = []
    for form in (one, layer):
        buffer = io.BytesIO()
        torch.save(form.state_dict(), buffer)
        sizes.append(buffer.tell())
    assert sizes[0] < sizes[1]
    one(x).sum().backward()
    assert all(parameter.grad is not None for parameter in one.parameters())


def test_merging_twice_is_an_error():
    layer = merged(SlideAttention(16, 2))
    with pytest.raises(RuntimeError, match='merged already'):
        layer.merge()


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
@pytest.mark.parametrize('source_is_merged', [False, True])
@pytest.mark.parametrize('target_is_merged', [False, True])
def test_both_forms_load_in_both_forms(load, source_is_merged, target_is_merged):
    first, second = (nn.Sequential(SlideAttention(16, 2, 5)) for _ in range(2))
    for model, merges in ((first, source_is_merged), (second, target_is_merged)):
        if merges:
            model[0].merge()
    state, x = first.state_dict(), torch.randn(2, 6, 7, 16)
    before = {name: tensor.clone() for name, tensor in state.items()}
    load(second, state, strict=True)
    torch.testing.assert_close(second(x), first(x), rtol=1e-5, atol=1e-5)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize('target_is_merged', [False, True])
def test_loading_stays_strict(target_is_merged):
    source, target = SlideAttention(16, 2), SlideAttention(16, 2)
    if target_is_merged:
        target.merge()
    else:
        source.merge()
    state = source.state_dict()
    name = 'deform.bias' if target_is_merged else 'merged.bias'
    missing = {key: tensor for key, tensor in state.items() if key != name}
    with pytest.raises(RuntimeError, match='Missing key'):
        target.load_state_dict(missing)
    with pytest.raises(RuntimeError, match='size mismatch for'):
        target.load_state_dict(SlideAttention(16, 2, 5).state_dict())
    with pytest.raises(RuntimeError, match='Unexpected key'):
        target.load_state_dict({**state, 'other.bias': state[name]})


def test_small_weights_survive_low_precision():
    layer = SlideAttention(16, 2).bfloat16()
    with torch.no_grad():
        layer.deform.weight.fill_(2**-10)
    weight, _ = layer._kernels()
    assert weight.dtype == torch.float32
    assert torch.equal(weight, layer.shift_weight.float() + 2**-10)
    assert layer(torch.randn(1, 4, 5, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize('merges', [False, True])
def test_autocast(merges):
    layer, x = SlideAttention(16, 2), torch.randn(2, 9, 10, 16)
    if merges:
        layer.merge()
    expected = layer(x)
    with torch.autocast('cpu', torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.needs_torch('2.4', 'torch.compile of an operator')
@pytest.mark.parametrize('merges', [False, True])
def test_compile(merges):
    layer, x = SlideAttention(16, 2), torch.randn(2, 9, 10, 16)
    if merges:
        layer.merge()
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_heads': 3}, 'got dim=16, num_heads=3'),
        ({'kernel_size': 4}, r'one of \(3, 5, 7\), got 4'),
        ({'kernel_size': 9}, r'one of \(3, 5, 7\), got 9'),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        SlideAttention(**{'dim': 16, 'num_heads': 2, **arguments})
