import pytest
import torch

from mmlocalattn.layers.query_and_attend import ATTENTION_SCALES, POS_BIASES, QueryAndAttend

TAPS = 3


def layer(**options):
    """In float64, with every parameter random so that each shows in the output."""
    module = QueryAndAttend(**{'dim': 6, 'num_heads': 2, 'out_dim': 8, **options}).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def with_keys(module, x, stride=1):
    """The layer window by window, with keys, as local attention is usually written."""
    heads, (batch, height, width, _) = module.num_heads, x.shape
    key, value = (
        projection(x).view(batch, height, width, heads, -1)
        for projection in (module.key, module.value)
    )
    query = module.query
    if module.normalize_query:
        query = query / (query.square().sum(-1, keepdim=True).sqrt() + 1e-6)
    output = x.new_zeros(batch, -(-height // stride), -(-width // stride), *query.shape[1:])
    for b, row, column, head in torch.cartesian_prod(*map(torch.arange, output.shape[:4])).tolist():
        for index, q in enumerate(query[:, head]):
            taps = [
                (i, j, stride * row + i - TAPS // 2, stride * column + j - TAPS // 2)
                for i in range(TAPS)
                for j in range(TAPS)
            ]
            taps = [tap for tap in taps if 0 <= tap[2] < height and 0 <= tap[3] < width]
            scores, weights = [], []
            for i, j, y, z in taps:
                key_and_embedding = key[b, y, z, head]
                if module.pos_bias is not None and module.pos_bias.dim() == 5:
                    key_and_embedding = key_and_embedding + module.pos_bias[index, head, i, j]
                scores.append(q @ key_and_embedding / len(q) ** 0.5)
                if module.pos_bias is not None and module.pos_bias.dim() == 4:
                    scores[-1] = scores[-1] + module.pos_bias[index, head, i, j]
                scale = module._scale()
                weights.append(1 if scale is None else scale[index, head, i, j])
            attention = torch.stack(scores).softmax(0)
            for weight, share, (_, _, y, z) in zip(weights, attention, taps):
                output[b, row, column, head] += weight * share * value[b, y, z, head]
    return module.proj(output.flatten(3))


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'stride': 2, 'bias': True},
        {'normalize_query': False, 'num_queries': 1},
        *({'pos_bias': name} for name in POS_BIASES),
        *({'attention_scale': name} for name in ATTENTION_SCALES),
    ],
    ids=str,
)
def test_equals_attention_with_keys(options):
    module, x = layer(**options), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(module(x), with_keys(module, x, options.get('stride', 1)))


@pytest.mark.parametrize('factor', [2, 4])
def test_each_sub_pixel_has_queries_of_its_own(factor):
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    module = layer(upsample=factor)
    y = module(x)
    assert y.shape == (2, 3 * factor, 4 * factor, 8)
    single = layer()
    for name in ('key', 'value', 'proj'):
        getattr(single, name).load_state_dict(getattr(module, name).state_dict())
    for index in range(factor**2):
        heads = slice(2 * index, 2 * index + 2)
        for name in ('query', 'pos_bias', 'attention_scale'):
            getattr(single, name).data = getattr(module, name).data[:, heads]
        row, column = divmod(index, factor)
        torch.testing.assert_close(y[:, row::factor, column::factor], single(x))


@pytest.mark.parametrize(
    ('name', 'expected', 'learned'),
    [
        ('normal', None, 2 * 4 * 9),
        ('normal_elementwise', None, 2 * 4),
        ('ones', [1.0], 2 * 4 * 9),
        ('avg', [0.5], 0),
        ('posneg', [-1.0, 1.0], 0),
    ],
)
def test_attention_scale_at_first(name, expected, learned):
    module = QueryAndAttend(16, 4, attention_scale=name)
    scale = module._scale()
    assert scale.shape == (2, 4, 3, 3)
    if expected is None:
        assert 0.002 < scale.abs().mean() < 0.05
    else:
        assert scale.unique().tolist() == expected
    assert sum(p.numel() for n, p in module.named_parameters() if n == 'attention_scale') == learned
    assert ('attention_scale' in module.state_dict()) == (learned > 0)
    if name == 'posneg':
        assert scale[0].unique() == 1  # the first query


@pytest.mark.parametrize('options', [{}, {'stride': 2}, {'upsample': 2}], ids=str)
@pytest.mark.parametrize('size', [(1, 1), (1, 6), (5, 2)])
def test_any_map_and_every_parameter_gets_a_gradient(options, size):
    module = QueryAndAttend(8, 2, 7, pos_bias='absolute', bias=True, **options)
    x = torch.randn(2, *size, 8, requires_grad=True)
    y = module(x)
    y.square().sum().backward()
    factor, stride = options.get('upsample', 1), options.get('stride', 1)
    assert y.shape == (2, *(-(-side * factor // stride) for side in size), 8)
    assert torch.isfinite(x.grad).all()
    for parameter in module.parameters():
        assert torch.isfinite(parameter.grad).all()


def test_autocast():
    module, x = QueryAndAttend(16, 2, attention_scale='ones'), torch.randn(1, 6, 6, 16)
    with torch.autocast('cpu', torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), module(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_heads': 3}, 'got out_dim=16, num_heads=3'),
        ({'kernel_size': 4}, 'odd and positive, got kernel_size=4'),
        ({'stride': 3}, 'must be 1 or 2, got stride=3'),
        ({'upsample': 0}, 'got upsample=0, stride=1'),
        ({'upsample': 2, 'stride': 2}, 'got upsample=2, stride=2'),
        ({'pos_bias': 'rpe'}, r"\('relative', 'absolute', 'none'\), got pos_bias='rpe'"),
        ({'attention_scale': 'mean'}, r"'posneg'.+ got attention_scale='mean'"),
    ],
)
def test_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        QueryAndAttend(**{'dim': 16, 'num_heads': 2, **options})
