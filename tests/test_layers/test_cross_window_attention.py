import pytest
import torch
import torch.nn.functional as F

from mmlocalattn.layers.cross_window_attention import CrossWindowAttention


def attend_in_stripes(layer, x):
    """Stripe by stripe, as CSwin's paper has it: half of the channels vertical, half horizontal."""
    maps = layer.qkv(x).chunk(3, -1)
    parts = [tensor.chunk(layer.num_groups, -1) for tensor in maps]
    heads = layer.num_heads // layer.num_groups
    outputs = []
    for group, axis in zip(range(layer.num_groups), (2, 1)):
        query, key, value = (part[group] for part in parts)
        side = layer.split_size or max(x.shape[1:3])
        pieces = [
            attend(layer.lepe[group], heads, *stripe)
            for stripe in zip(*(tensor.split(side, axis) for tensor in (query, key, value)))
        ]
        outputs.append(torch.cat(pieces, axis))
    return layer.proj(torch.cat(outputs, -1))


def attend(lepe, heads, query, key, value):
    """All positions of a stripe (B, h, w, C) to each other, plus the convolution of the values."""
    split = [t.flatten(1, 2).unflatten(-1, (heads, -1)) for t in (query, key, value)]
    logits = torch.einsum('bqhd,bkhd->bhqk', *split[:2]) / split[0].shape[-1] ** 0.5
    output = torch.einsum('bhqk,bkhd->bqhd', logits.softmax(-1), split[2]).reshape(query.shape)
    conv = F.conv2d(
        value.permute(0, 3, 1, 2), lepe.weight, lepe.bias, padding=1, groups=value.shape[-1]
    )
    return output + conv.permute(0, 2, 3, 1)


@pytest.mark.parametrize('split_size', [1, 2, 7, None])
@pytest.mark.parametrize('size', [(14, 14), (9, 12), (5, 3), (1, 1)])
def test_equals_attention_stripe_by_stripe(split_size, size):
    layer = CrossWindowAttention(16, 4, split_size).double()
    x = torch.randn(2, *size, 16, dtype=torch.float64, requires_grad=True)
    results = []
    for y in (layer(x), attend_in_stripes(layer, x)):
        torch.manual_seed(1)
        grads = torch.autograd.grad(y, [x, *layer.parameters()], torch.randn_like(y))
        results.append((y, grads))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize('split_size', [2, 7, None])
@pytest.mark.parametrize('size', [(14, 14), (9, 12), (5, 3)])
def test_form_for_symbolic_sizes(split_size, size, monkeypatch):
    """Padding and mask give what the cut stripes give."""
    layer, x = CrossWindowAttention(16, 4, split_size), torch.randn(2, *size, 16)
    expected = layer(x)
    monkeypatch.setattr('mmlocalattn.layers.window.is_symbolic', lambda *lengths: True)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_heads': 3}, 'num_heads of 2, got dim=16, num_heads=3'),
        ({'num_heads': 1}, 'num_heads of 2, got dim=16, num_heads=1'),
        ({'num_heads': 3, 'split_size': None}, 'num_heads of 1, got dim=16, num_heads=3'),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrossWindowAttention(**{'dim': 16, 'num_heads': 2, 'split_size': 7, **arguments})
