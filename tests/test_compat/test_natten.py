"""NATTEN's functions on our operators, against NATTEN's FlexAttention where it is installed."""

import inspect
from collections.abc import Callable

import pytest
import torch

from mmlocalattn.compat.natten import na2d, na2d_av, na2d_qk
from mmlocalattn.ops import neighborhood_attention

needs_natten = pytest.mark.needs_torch('2.5', 'NATTEN')


@needs_natten
def test_signature() -> None:
    """That of NATTEN, and 0.17's bias by name."""
    from natten import na2d as theirs

    expected = [(each.name, each.default) for each in inspect.signature(theirs).parameters.values()]
    ours = [(each.name, each.default) for each in inspect.signature(na2d).parameters.values()]
    assert ours == [*expected, ('rpb', None)]


@needs_natten
@pytest.mark.parametrize(
    ('shape', 'options'),
    [
        ((2, 7, 9, 2, 16), dict(kernel_size=3)),
        ((1, 12, 15, 1, 16), dict(kernel_size=(3, 5), dilation=(4, 3), scale=0.3)),
        ((1, 14, 13, 2, 8), dict(kernel_size=(7, 3), dilation=[2, 4], stride=(1, 1))),
        ((1, 9, 11, 2, 16), dict(kernel_size=[9, 7], is_causal=(False, False), scale=0.0)),
        ((1, 5, 7, 1, 32), dict(kernel_size=(5, 7), stride=None, dilation=None, is_causal=None)),
    ],
)
def test_is_what_natten_computes(shape: tuple, options: dict) -> None:
    from natten import na2d as theirs

    tensors = torch.randn(3, *shape)
    expected = theirs(*tensors, **options)
    torch.testing.assert_close(na2d(*tensors, **options), expected, rtol=1e-5, atol=1e-5)


@needs_natten
@pytest.mark.parametrize('options', [dict(kernel_size=9), dict(kernel_size=3, dilation=(1, 4))])
def test_windows_larger_than_the_map_are_refused_as_by_natten(options: dict) -> None:
    from natten import na2d as theirs

    tensors = torch.randn(3, 1, 8, 10, 1, 8)
    with pytest.raises(ValueError, match='kernel size and dilation cannot be larger'):
        theirs(*tensors, **options)
    with pytest.raises(ValueError, match=r'kernel_size \* dilation must not exceed the map, got'):
        na2d(*tensors, **options)


def test_what_chooses_kernels_is_ignored() -> None:
    tensors = torch.randn(3, 1, 8, 10, 2, 8)
    output = na2d(
        *tensors,
        kernel_size=5,
        backend='cutlass-fna',
        q_tile_shape=(8, 8),
        kv_tile_shape=(8, 8),
        torch_compile=True,
        kernel_schedule='coop',
        attention_kwargs=dict(backend='cutlass-fmha'),
    )
    assert torch.equal(output, neighborhood_attention(*tensors, 5))


def test_position_bias_of_0_17() -> None:
    tensors = torch.randn(3, 1, 8, 10, 2, 8)
    bias = torch.randn(2, 5, 9, requires_grad=True)
    output = na2d(*tensors, kernel_size=(3, 5), dilation=2, is_causal=False, rpb=bias, scale=0.5)
    expected = neighborhood_attention(*tensors, (3, 5), 2, bias, 0.5)
    assert torch.equal(output, expected)
    (grad,) = torch.autograd.grad(output.square().sum(), bias)
    (expected,) = torch.autograd.grad(expected.square().sum(), bias)
    assert grad.any()
    assert torch.equal(grad, expected)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(stride=2), r"stride 1 only, got stride=2: if this is NATTEN 0.17's dilation"),
        (dict(stride=(1, 3)), r'got stride=\(1, 3\)'),
        (dict(is_causal=True), 'no causal masks, got is_causal=True'),
        (dict(is_causal=(False, True)), r'got is_causal=\(False, True\)'),
        (dict(additional_keys=torch.zeros(1, 4, 2, 8)), 'no additional_keys, additional_values'),
        (dict(additional_values=torch.zeros(1, 4, 2, 8)), 'no additional_keys, additional_values'),
        (dict(return_lse=True), 'does not return the log-sum-exp'),
    ],
)
def test_what_is_not_here_is_refused_in_one_line(options: dict, message: str) -> None:
    tensors = torch.randn(3, 1, 8, 10, 2, 8)
    with pytest.raises(NotImplementedError, match=message) as error:
        na2d(*tensors, 3, **options)
    assert '\n' not in str(error.value)


def test_even_windows_and_grouped_heads_are_refused() -> None:
    query, key, value = torch.randn(3, 1, 8, 10, 2, 8)
    with pytest.raises(ValueError, match=r'kernel_size must be odd and positive, got .*\(4, 4\)'):
        na2d(query, key, value, 4)
    with pytest.raises(ValueError, match='query, key, value must have one shape'):
        na2d(query, key[..., :1, :], value[..., :1, :], 3)


@pytest.mark.parametrize('half', [na2d_qk, na2d_av])
def test_halves_say_what_to_use(half: Callable) -> None:
    tensors = torch.randn(2, 1, 2, 8, 10, 8)
    with pytest.raises(NotImplementedError, match=rf'no {half.__name__}, .*: use na2d\(query'):
        half(*tensors, kernel_size=3, dilation=1)
