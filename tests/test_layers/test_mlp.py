import pytest
import torch
from torch.nn import functional as F

from mmlocalattn.layers.mlp import MLP, ConvFFN, ConvMLP


def test_equals_the_convolutions_of_the_released_code():
    ffn, x = ConvFFN(8, 24), torch.randn(2, 5, 7, 8)
    y = x.permute(0, 3, 1, 2)
    y = F.gelu(F.conv2d(y, ffn.fc1.weight[:, :, None, None], ffn.fc1.bias))
    y = y + F.conv2d(y, ffn.dwconv.weight, ffn.dwconv.bias, padding=1, groups=24)
    y = F.conv2d(y, ffn.fc2.weight[:, :, None, None], ffn.fc2.bias)
    torch.testing.assert_close(ffn(x), y.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('approximate', ['none', 'tanh'])
def test_two_linear_layers_around_a_gelu(approximate):
    mlp, x = MLP(8, 24, approximate), torch.randn(2, 5, 7, 8)
    hidden = F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias), approximate=approximate)
    expected = F.linear(hidden, mlp.fc2.weight, mlp.fc2.bias)
    torch.testing.assert_close(mlp(x), expected, rtol=0, atol=0)


def test_convolution_between_linear_layers():
    mlp, x = ConvMLP(8, 24), torch.randn(2, 5, 7, 8)
    y = mlp.fc1(x).permute(0, 3, 1, 2)
    y = F.gelu(F.conv2d(y, mlp.dwconv.weight, mlp.dwconv.bias, padding=1, groups=24))
    torch.testing.assert_close(mlp(x), mlp.fc2(y.permute(0, 2, 3, 1)))
