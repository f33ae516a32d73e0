import pytest
import torch

from mmlocalattn.layers.neighborhood_attention import NeighborhoodAttention
from mmlocalattn.ops.neighborhood import neighborhood_attention


def attend(layer, x, kernel, dilation, bias):
    """The layer in terms of the operator."""
    query, key, value = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1)).unbind(3)
    return layer.proj(neighborhood_attention(query, key, value, kernel, dilation, bias).flatten(3))


@pytest.mark.parametrize('dilation', [1, 2])
def test_is_the_operator_between_projections(dilation):
    layer, x = NeighborhoodAttention(16, 2, 5, dilation), torch.randn(2, 10, 13, 16)
    torch.testing.assert_close(layer(x), attend(layer, x, 5, dilation, layer.rel_pos_bias))


def test_without_biases():
    layer = NeighborhoodAttention(16, 2, 3, rel_pos_bias=False, qkv_bias=False)
    x = torch.randn(2, 4, 5, 16)
    assert {name for name, _ in layer.named_parameters()} == {
        'qkv.weight',
        'proj.weight',
        'proj.bias',
    }
    torch.testing.assert_close(layer(x), attend(layer, x, 3, 1, None))


def test_a_window_that_does_not_fit_shrinks_with_its_bias():
    layer, x = NeighborhoodAttention(16, 2, 7), torch.randn(2, 4, 20, 16)
    centre = layer.rel_pos_bias[:, 4:9, :]  # rows -2..2 of -6..6
    torch.testing.assert_close(layer(x), attend(layer, x, (3, 7), 1, centre))


def test_a_dilation_that_does_not_fit_falls_first():
    layer, x = NeighborhoodAttention(16, 2, 5, dilation=4), torch.randn(2, 13, 20, 16)
    torch.testing.assert_close(layer(x), attend(layer, x, 5, (2, 4), layer.rel_pos_bias))
    torch.testing.assert_close(
        layer(x[:, :3]), attend(layer, x[:, :3], (3, 5), (1, 4), layer.rel_pos_bias[:, 2:7])
    )


def test_padding_is_attended_to():
    layer, x = NeighborhoodAttention(16, 2, 5, dilation=3, pad=True), torch.randn(2, 13, 20, 16)
    larger = torch.zeros(2, 15, 20, 16)
    larger[:, :13] = x
    torch.testing.assert_close(layer(x), layer(larger)[:, :13])
    torch.testing.assert_close(
        layer(x), attend(layer, larger, 5, 3, layer.rel_pos_bias)[:, :13], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('size', [(1, 1), (1, 6), (3, 40), (13, 7)])
@pytest.mark.parametrize(('dilation', 'pad'), [(1, False), (3, False), (3, True)])
def test_any_map(size, dilation, pad):
    layer = NeighborhoodAttention(8, 2, 7, dilation, pad=pad)
    x = torch.randn(2, *size, 8, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert torch.isfinite(x.grad).all()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_autocast_casts_the_bias():
    layer, x = NeighborhoodAttention(16, 2, 3), torch.randn(1, 6, 6, 16)
    with torch.autocast('cpu', torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_heads': 3}, 'got dim=16, num_heads=3'),
        ({'kernel_size': 4}, 'must be odd and positive, got kernel_size=4'),
        ({'dilation': 0}, 'at least 1, got dilation=0'),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        NeighborhoodAttention(**{'dim': 16, 'num_heads': 2, **arguments})
