import pytest
import torch
from torch.nn import functional as F

from mmlocalattn.layers.depthwise_conv import DepthwiseConv2d


@pytest.mark.parametrize('size', [(1, 1), (4, 1), (6, 9)])
@pytest.mark.parametrize('kernel_size', [3, 5])
def test_equals_the_nchw_convolution(size, kernel_size):
    conv, x = DepthwiseConv2d(8, kernel_size), torch.randn(2, *size, 8)
    expected = F.conv2d(
        x.permute(0, 3, 1, 2).contiguous(),
        conv.weight,
        conv.bias,
        padding=kernel_size // 2,
        groups=8,
    )
    y = conv(x)
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


def test_reads_a_slice_of_the_channels():
    conv, x = DepthwiseConv2d(4, 3), torch.randn(2, 5, 6, 12)
    torch.testing.assert_close(conv(x[..., 8:]), conv(x[..., 8:].contiguous()))


@pytest.mark.parametrize('kernel_size', [3, 5])
@pytest.mark.parametrize('precision', ['fp32', 'fp64', 'autocast'])
@pytest.mark.parametrize('grad', [True, False])
def test_residual_adds_the_input(kernel_size, precision, grad):
    dtype = torch.float64 if precision == 'fp64' else torch.float32
    conv = DepthwiseConv2d(8, kernel_size, residual=True).to(dtype)
    plain = DepthwiseConv2d(8, kernel_size).to(dtype)
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, 6, 9, 8, dtype=dtype)
    before = x.clone()
    with torch.set_grad_enabled(grad), torch.autocast('cpu', enabled=precision == 'autocast'):
        torch.testing.assert_close(conv(x), x + plain(x))
    assert torch.equal(x, before)
