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


@pytest.mark.parametrize('kernel_size', [5, 7])
@pytest.mark.parametrize('size', [(1, 1), (2, 9), (9, 14)])
@pytest.mark.parametrize('residual', [True, False])
def test_gradients_of_wide_kernels(kernel_size, size, residual):
    conv = DepthwiseConv2d(6, kernel_size, residual).double()
    x = torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    weight, bias = (p.detach().clone().requires_grad_() for p in conv.parameters())
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=kernel_size // 2, groups=6)
    expected = expected.permute(0, 2, 3, 1) + (x if residual else 0)
    grad = torch.randn_like(expected)
    y = conv(x)
    torch.testing.assert_close(y, expected)
    ours = torch.autograd.grad(y, (x, *conv.parameters()), grad)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, (x, weight, bias), grad))


def test_wide_kernels_twice():
    """The gradients of wide kernels have gradients."""
    conv = DepthwiseConv2d(2, 5).double()
    x = torch.randn(1, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    inputs = (x, conv.weight, conv.bias)
    assert torch.autograd.gradgradcheck(lambda x, *_: conv(x), inputs)


def test_wide_kernels_of_samples():
    """torch.func sees through: gradients per sample."""
    conv, x = DepthwiseConv2d(4, 5), torch.randn(3, 5, 6, 4)
    parameters = dict(conv.named_parameters())

    def loss(parameters, sample):
        return torch.func.functional_call(conv, parameters, (sample[None],)).pow(2).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        conv.zero_grad()
        loss(parameters, sample).backward()
        torch.testing.assert_close(each['weight'][i], conv.weight.grad, rtol=1e-4, atol=1e-5)


def test_wide_kernels_under_autocast():
    conv, x = DepthwiseConv2d(8, 5), torch.randn(2, 6, 9, 8)
    with torch.autocast('cpu'):
        y = conv(x)
        (ours,) = torch.autograd.grad(y.float().pow(2).sum(), conv.weight)
        expected = F.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=2, groups=8)
    assert y.dtype == torch.bfloat16
    (expected,) = torch.autograd.grad(expected.float().pow(2).sum(), conv.weight)
    torch.testing.assert_close(ours, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())


def test_a_frozen_wide_kernel_and_none_for_the_input():
    conv, x = DepthwiseConv2d(4, 5), torch.randn(1, 5, 6, 4)
    conv(x).sum().backward()  # the input needs no gradient
    conv.weight.requires_grad_(False)
    x.requires_grad_()
    conv(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
