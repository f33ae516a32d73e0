import pytest
import torch

from mmlocalattn.layers.window_attention import WindowAttention


def window_of(index, length, window, shift):
    """Number of the window along one side of the map."""
    return 0 if length <= window else (index - shift) // window


def attend(layer, x):
    """The layer position by position: a query sees the keys whose window is its own."""
    (height, width), heads = x.shape[1:3], layer.num_heads
    query, key, value = layer.qkv(x).unflatten(-1, (3, heads, -1)).unbind(3)
    output = torch.zeros_like(query)
    cells = [(r, c) for r in range(height) for c in range(width)]
    windows = {
        (r, c): (
            window_of(r, height, layer.window_size[0], layer.shift[0]),
            window_of(c, width, layer.window_size[1], layer.shift[1]),
        )
        for r, c in cells
    }
    for r, c in cells:
        seen = [cell for cell in cells if windows[cell] == windows[r, c]]
        keys, values = (torch.stack([t[:, i, j] for i, j in seen], 2) for t in (key, value))
        logits = torch.einsum('bhd,bhnd->bhn', query[:, r, c], keys) / query.shape[-1] ** 0.5
        if layer.rel_pos_bias is not None:
            top, left = (side - 1 for side in layer.window_size)
            offsets = [layer.rel_pos_bias[:, top + r - i, left + c - j] for i, j in seen]
            logits = logits + torch.stack(offsets, -1)
        output[:, r, c] = torch.einsum('bhn,bhnd->bhd', logits.softmax(-1), values)
    return layer.proj(output.flatten(3))


@pytest.mark.parametrize('size', [(1, 2), (4, 4), (3, 9), (8, 12), (9, 7), (13, 14)])
@pytest.mark.parametrize('shift', [(0, 0), (2, 3)])
def test_form_for_symbolic_sizes(size, shift, monkeypatch):
    """Padding, roll and mask give what the cut windows give."""
    layer, x = WindowAttention(8, 2, 4, shift), torch.randn(2, *size, 8)
    expected = layer(x)
    monkeypatch.setattr('mmlocalattn.layers.window.is_symbolic', lambda *lengths: True)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ('size', 'window', 'shift'),
    [
        ((8, 12), 4, 0),
        ((8, 12), 4, 2),
        ((9, 10), 4, 0),
        ((9, 10), 4, 1),
        ((7, 11), (3, 5), (1, 2)),
        ((6, 7), (99, 2), (0, 1)),  # stripes
        ((5, 3), 4, 2),
        ((3, 4), 7, 3),
        ((1, 1), 7, 3),
    ],
)
def test_equals_attention_position_by_position(size, window, shift):
    layer = WindowAttention(8, 2, window, shift).double()
    x = torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    results = []
    for y in (layer(x), attend(layer, x)):
        torch.manual_seed(1)
        grads = torch.autograd.grad(y, [x, *layer.parameters()], torch.randn_like(y))
        results.append((y, grads))
    torch.testing.assert_close(*results)
    assert results[0][0].is_contiguous()


def released_form(layer, x):
    """Pad, roll, mask: Swin's shifted windows, with a mask over the padding too."""
    (height, width), (window, _), (shift, _) = x.shape[1:3], layer.window_size, layer.shift
    pad = -height % window, -width % window
    x = torch.nn.functional.pad(x, (0, 0, 0, pad[1], 0, pad[0]))
    regions = torch.full(x.shape[1:3], -1)
    for i, rows in enumerate((slice(0, shift), slice(shift, height))):
        for j, columns in enumerate((slice(0, shift), slice(shift, width))):
            regions[rows, columns] = 2 * i + j
    x, regions = x.roll((-shift, -shift), (1, 2)), regions.roll((-shift, -shift), (0, 1))

    def partition(t):
        t = t.unflatten(1, (-1, window)).unflatten(0, (-1, window))
        return t.transpose(1, 2).reshape(-1, window**2, *t.shape[4:])

    regions = partition(regions)
    mask = regions[:, :, None] == regions[:, None]
    output = []
    for image in x:
        qkv = layer.qkv(partition(image)).unflatten(-1, (3, layer.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        logits = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5 + swin_bias(layer)
        logits = logits.masked_fill(~mask[:, None], -torch.inf)
        windows = layer.proj((logits.softmax(-1) @ value).transpose(1, 2).flatten(2))
        grid = windows.unflatten(1, (window, window)).unflatten(0, (-1, x.shape[2] // window))
        output.append(grid.transpose(1, 2).reshape(x.shape[1:]))
    x = torch.stack(output).roll((shift, shift), (1, 2))
    return x[:, :height, :width]


def swin_bias(layer):
    """As Swin looks it up."""
    window = layer.window_size[0]
    cells = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    index = cells[:, None] - cells + window - 1
    return layer.rel_pos_bias.flatten(1)[:, index[..., 0] * (2 * window - 1) + index[..., 1]]


@pytest.mark.parametrize(('size', 'shift'), [((14, 21), 3), ((13, 17), 0), ((13, 17), 3)])
def test_equals_padding_rolling_and_masking(size, shift):
    layer, x = WindowAttention(16, 2, 7, shift), torch.randn(2, *size, 16)
    torch.testing.assert_close(layer(x), released_form(layer, x))


def test_without_biases():
    layer = WindowAttention(8, 2, 3, rel_pos_bias=False, qkv_bias=False).double()
    x = torch.randn(1, 5, 6, 8, dtype=torch.float64)
    assert [name for name, _ in layer.named_parameters()] == [
        'qkv.weight',
        'proj.weight',
        'proj.bias',
    ]
    torch.testing.assert_close(layer(x), attend(layer, x))


def test_one_state_for_all_maps():
    layer = WindowAttention(8, 2, 7, 3)
    before = {name: tensor.shape for name, tensor in layer.state_dict().items()}
    layer(torch.randn(1, 5, 20, 8))
    assert {name: tensor.shape for name, tensor in layer.state_dict().items()} == before
    assert before['rel_pos_bias'] == (2, 13, 13)


def test_autocast():
    layer, x = WindowAttention(16, 2, 4, 2), torch.randn(2, 9, 10, 16)
    expected = layer(x)
    with torch.autocast('cpu', torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.02)


@pytest.mark.needs_torch('2.4', 'torch.compile of an operator')
def test_compile():
    layer, x = WindowAttention(16, 2, 4, 2), torch.randn(2, 9, 10, 16)
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_heads': 3}, 'got dim=16, num_heads=3'),
        ({'window_size': 0}, 'must be positive, got window_size=0'),
        ({'window_size': (2, 3, 4)}, r'pair of ints, got \(2, 3, 4\)'),
        ({'shift': 7}, 'below window_size, got shift=7, window_size=7'),
        ({'shift': (0, -1)}, r'got shift=\(0, -1\)'),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        WindowAttention(**{'dim': 16, 'num_heads': 2, 'window_size': 7, **arguments})
