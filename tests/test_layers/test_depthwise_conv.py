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
