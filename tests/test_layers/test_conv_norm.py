import pytest
import torch
from torch import nn

from mmlocalattn.layers.conv_norm import ConvNorm


def randomize(norm):
    """Statistics and weights as after training."""
    for tensor in (norm.running_mean, norm.weight, norm.bias):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)


@pytest.mark.parametrize('training', [True, False], ids=['batch statistics', 'folded'])
@pytest.mark.parametrize(('kernel_size', 'stride'), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_is_convolution_and_norm(kernel_size, stride, training):
    layer = ConvNorm(6, 8, kernel_size, stride).train(training)
    randomize(layer.norm)
    results = []
    for fold in (True, False):
        torch.manual_seed(1)
        x = torch.randn(2, 7, 10, 6, requires_grad=True)
        layer.zero_grad()
        y = layer(x) if fold else layer.norm(layer.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        (y * torch.randn_like(y)).sum().backward()
        results.append((y, x.grad, [p.grad.clone() for p in layer.parameters()]))
    assert results[0][0].shape == (2, -(-7 // stride), -(-10 // stride), 8)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_other_norms():
    layer, x = (
        ConvNorm(6, 8, 1, norm_cfg=dict(type='GN', num_groups=2)).eval(),
        torch.ones(1, 4, 4, 6),
    )
    expected = layer.norm(layer.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), expected)


def test_nothing_is_copied_on_the_way():
    layer = ConvNorm(6, 8, 3).eval()
    assert layer(torch.randn(2, 7, 10, 6)).is_contiguous()


def test_fold_keeps_the_precision_of_autocast():
    layer, x = ConvNorm(6, 8, 3).eval(), torch.randn(2, 7, 10, 6)
    randomize(layer.norm)
    with torch.autocast('cpu', torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
