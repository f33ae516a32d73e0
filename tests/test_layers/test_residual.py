import torch

from mmlocalattn.layers.residual import add_residual, relu


def test_in_place_without_gradient():
    branch, x = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    expected, before = branch + x, x.clone()
    result = add_residual(branch, x)
    assert result.data_ptr() == branch.data_ptr()
    assert torch.equal(result, expected)
    assert torch.equal(x, before)


def test_leaves_what_autograd_needs():
    x = torch.randn(2, 3, requires_grad=True)
    branch = x.exp()  # its backward needs its result
    add_residual(branch, x).sum().backward()
    torch.testing.assert_close(x.grad, x.detach().exp() + 1)


def test_keeps_the_precision_of_the_input():
    branch, x = torch.ones(3, dtype=torch.bfloat16), torch.full((3,), 1e-4)
    result = add_residual(branch, x)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.full((3,), 1.0001), rtol=1e-6, atol=0)


def test_relu_in_place_without_gradient():
    x = torch.randn(2, 3, 4)
    expected = x.clamp(min=0)
    assert relu(x).data_ptr() == x.data_ptr()
    assert torch.equal(x, expected)


def test_relu_leaves_what_autograd_needs():
    x = torch.randn(2, 3, requires_grad=True)
    relu(x.exp() - 1).sum().backward()
    torch.testing.assert_close(x.grad, x.detach().exp() * (x > 0))
    y = x.exp()  # its backward needs its result
    relu(y).sum().backward()
