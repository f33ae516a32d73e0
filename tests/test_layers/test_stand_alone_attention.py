import pytest
import torch
from torch import nn

from mmlocalattn.layers.stand_alone_attention import StandAloneAttention
from mmlocalattn.ops.stand_alone import stand_alone_attention


def attend(layer, x):
    """The layer in terms of the operator."""
    query, key, value = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1)).unbind(3)
    embeddings = layer.row_embedding, layer.column_embedding
    y = stand_alone_attention(query, key, value, *embeddings, layer.kernel_size, layer.padding)
    return y.flatten(3)


def batch_norm(channels):
    """A BatchNorm as after training, in eval mode."""
    norm = nn.BatchNorm2d(channels).eval()
    for tensor in (norm.running_mean, norm.weight, norm.bias):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm


@pytest.mark.parametrize('padding', ['mask', 'zero'])
def test_is_the_operator_behind_projections(padding):
    layer, x = StandAloneAttention(12, 20, 2, 5, padding), torch.randn(2, 6, 9, 12)
    torch.testing.assert_close(layer(x), attend(layer, x))


def test_parameters():
    layer = StandAloneAttention(64, 64, 8, 7)
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    assert shapes == {
        'qkv.weight': (192, 64),
        'row_embedding': (8, 7, 4),
        'column_embedding': (8, 7, 4),
    }


@pytest.mark.parametrize('size', [(6, 8), (5, 9), (1, 1), (1, 6)])
def test_a_stride_averages_what_there_is(size):
    layer, x = StandAloneAttention(8, 8, 2, 3, stride=2), torch.randn(2, *size, 8)
    y, dense = layer(x), attend(layer, x)
    assert y.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 8)
    for row in range(y.shape[1]):
        for column in range(y.shape[2]):
            block = dense[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            torch.testing.assert_close(y[:, row, column], block.mean((1, 2)))


@pytest.mark.parametrize('padding', ['mask', 'zero'])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('training', [True, False], ids=['batch statistics', 'fixed'])
def test_norm_of_the_output(training, stride, padding):
    """With fixed statistics and 'mask' the values take it."""
    layer = StandAloneAttention(8, 12, 2, 5, padding, stride)
    norm = batch_norm(12).train(training)
    parameters = [*layer.parameters(), *norm.parameters()]
    results = []
    for inside in (True, False):
        torch.manual_seed(1)
        x = torch.randn(2, 5, 7, 8, requires_grad=True)
        y = layer(x, norm) if inside else norm(layer(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        loss = (y * torch.randn_like(y)).sum()
        results.append((y, *torch.autograd.grad(loss, [x, *parameters])))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('size', [(1, 1), (1, 6), (3, 20), (13, 7)])
def test_any_map(size):
    layer = StandAloneAttention(8, 8, 2)
    x = torch.randn(2, *size, 8, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


def test_initial_logits_do_not_grow_with_the_head():
    layer = StandAloneAttention(256, 256, 2)
    query, key, _ = layer.qkv(torch.randn(1, 8, 8, 256)).unflatten(-1, (3, 2, -1)).unbind(3)
    assert (query * key).sum(-1).std().item() == pytest.approx(1, rel=0.3)


def test_autocast_keeps_the_embeddings():
    layer, x = StandAloneAttention(16, 16, 2, 3), torch.randn(1, 6, 6, 16)
    with torch.autocast('cpu', torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.03)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_heads': 3}, 'got out_channels=16, num_heads=3'),
        ({'kernel_size': 4}, 'must be 3, 5, 7, 9 or 11, got kernel_size=4'),
        ({'kernel_size': 13}, 'got kernel_size=13'),
        ({'padding': 'reflect'}, "'mask' or 'zero', got padding='reflect'"),
        ({'stride': 4}, 'must be 1 or 2, got stride=4'),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        StandAloneAttention(**{'in_channels': 8, 'out_channels': 16, 'num_heads': 2, **arguments})


@pytest.mark.parametrize('size', [(8, 12), (5, 7), (1, 2)])
def test_form_for_symbolic_sizes(size, monkeypatch):
    layer, x = StandAloneAttention(6, 8, num_heads=2, stride=2), torch.randn(2, *size, 6)
    expected = layer(x)
    monkeypatch.setattr(
        'mmlocalattn.layers.stand_alone_attention.is_symbolic', lambda *lengths: True
    )
    torch.testing.assert_close(layer(x), expected)
