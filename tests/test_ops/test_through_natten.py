"""Attention through NATTEN. On the CPU it has FlexAttention, which computes forward passes."""

import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mmlocalattn.layers.rotary import rotary_table
from mmlocalattn.ops import implementation, neighborhood_attention, sparse_scan_attention
from mmlocalattn.ops.neighborhood import neighborhood_attention_reference

pytestmark = pytest.mark.needs_torch('2.5', 'NATTEN')


@pytest.fixture
def natten(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict]]:
    """The calls of ``na2d`` while CPU tensors go through NATTEN."""
    from mmlocalattn.ops import through_natten

    calls: list[dict] = []
    na2d = through_natten.na2d

    def record(query: Tensor, key: Tensor, value: Tensor, kernel_size: Any, **more: Any) -> Tensor:
        calls.append(dict(dtype=query.dtype, kernel_size=kernel_size, **more))
        return na2d(query, key, value, kernel_size, **more)

    monkeypatch.setattr(through_natten, 'na2d', record)
    through_natten._say_once.cache_clear()
    with implementation('natten', 'cpu'):
        yield calls


WINDOWS = [
    ((2, 7, 9, 2, 32), (3, 3), (1, 1)),
    ((1, 12, 15, 1, 16), (3, 5), (4, 3)),
    ((1, 9, 11, 2, 32), (9, 7), (1, 1)),
    ((1, 5, 7, 1, 64), (5, 7), (1, 1)),  # the whole map
    ((1, 14, 13, 2, 32), (7, 3), (2, 4)),
]


@pytest.mark.parametrize(('shape', 'kernel_size', 'dilation'), WINDOWS)
def test_neighborhood_attention(
    shape: tuple, kernel_size: tuple, dilation: tuple, natten: list[dict]
) -> None:
    tensors = torch.randn(3, *shape)
    output = neighborhood_attention(*tensors, kernel_size, dilation, scale=0.3)
    assert natten == [
        dict(dtype=torch.float32, kernel_size=kernel_size, dilation=dilation, scale=0.3)
    ]
    with implementation('kernels', 'cpu'):
        expected = neighborhood_attention(*tensors, kernel_size, dilation, scale=0.3)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('local', 'anchor', 'dilation', 'steps'),
    [
        (5, 3, 3, [(5, 5), (3, 3)]),
        (1, 3, 2, [(3, 3)]),
        ((3, 5), 1, 1, [(3, 5)]),
        (1, 1, 1, []),
    ],
)
@pytest.mark.parametrize('with_rotary', [True, False])
def test_sparse_scan_attention(
    local: Any, anchor: Any, dilation: Any, steps: list, with_rotary: bool, natten: list[dict]
) -> None:
    tensors = torch.randn(3, 1, 11, 13, 2, 32)
    rotary = rotary_table(11, 13, 32) if with_rotary else None
    output = sparse_scan_attention(*tensors, local, anchor, dilation, rotary=rotary)
    assert [call['kernel_size'] for call in natten] == steps
    with implementation('kernels', 'cpu'):
        expected = sparse_scan_attention(*tensors, local, anchor, dilation, rotary=rotary)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert output.data_ptr() != tensors[2].data_ptr()


def test_autocast(natten: list[dict]) -> None:
    tensors = torch.randn(3, 1, 9, 11, 2, 32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outputs = [
            neighborhood_attention(*tensors, 3),
            sparse_scan_attention(*tensors, 3, 3, 2, rotary=rotary_table(9, 11, 32)),
        ]
    assert [call['dtype'] for call in natten] == [torch.bfloat16] * 3
    with implementation('kernels', 'cpu'), torch.autocast('cpu', dtype=torch.bfloat16):
        expected = [
            neighborhood_attention(*tensors, 3),
            sparse_scan_attention(*tensors, 3, 3, 2, rotary=rotary_table(9, 11, 32)),
        ]
    for ours, theirs in zip(outputs, expected):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_gradients_are_those_of_natten(natten: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU; here its place is taken by the reference, whose gradient autograd finds."""
    from mmlocalattn.ops import through_natten

    def na2d(*tensors: Tensor, dilation: tuple, scale: float) -> Tensor:
        query, key, value, kernel_size = tensors
        return neighborhood_attention_reference(
            query, key, value, None, kernel_size, dilation, scale
        )[0]

    monkeypatch.setattr(through_natten, 'na2d', na2d)
    monkeypatch.setattr(through_natten, '_why_not', lambda *_: '')
    tensors = torch.randn(3, 1, 9, 11, 2, 8, dtype=torch.float64, requires_grad=True)
    output = sparse_scan_attention(*tensors, 3, 3, 2)
    (grad,) = torch.autograd.grad(output.square().sum(), tensors)
    with implementation('kernels', 'cpu'):
        expected = sparse_scan_attention(*tensors, 3, 3, 2)
        (expected,) = torch.autograd.grad(expected.square().sum(), tensors)
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-9)
    assert 'mmlocalattn' not in output.grad_fn.name()


@pytest.mark.parametrize(
    ('shape', 'options', 'reason'),
    [
        ((1, 7, 9, 2, 32), dict(bias=torch.zeros(2, 5, 5)), 'position bias'),
        ((1, 7, 9, 2, 20), {}, 'head_dim 20 in torch.float32 on cpu'),
        ((1, 7, 9, 2, 32), dict(kernel_size=(1, 3)), 'windows of one position along an axis'),
        ((0, 7, 9, 2, 32), {}, 'empty maps'),
        ((1, 7, 9, 2, 32), dict(scale=-1.0), 'scales that are not positive'),
        ((1, 7, 9, 2, 32), dict(requires_grad=True), 'gradients on the CPU'),
    ],
)
def test_what_natten_does_not_serve_goes_to_the_kernels(
    shape: tuple, options: dict, reason: str, natten: list[dict]
) -> None:
    options = dict(kernel_size=3) | options
    tensors = torch.randn(3, *shape, requires_grad=options.pop('requires_grad', False))
    with pytest.warns(UserWarning, match=re.escape(f'NATTEN does not serve {reason}: kernels')):
        output = neighborhood_attention(*tensors, **options)
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # a second time it is not said
        again = neighborhood_attention(*tensors, **options)
    assert natten == []
    assert torch.equal(output, again)
    with implementation('kernels', 'cpu'):
        assert torch.equal(output, neighborhood_attention(*tensors, **options))


def test_on_a_gpu_only_fused_kernels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmlocalattn.ops import through_natten

    backends = ['flex-fna']
    monkeypatch.setattr(through_natten, 'get_compatible_backends', lambda *_, **__: backends)
    on_meta = torch.empty(1, 7, 9, 2, 32, device='meta')  # like a GPU, not the CPU
    arguments = on_meta, on_meta, on_meta, None, (3, 3), 1.0
    assert through_natten._why_not(*arguments) == 'head_dim 32 in torch.float32 on meta'
    backends.insert(0, 'hopper-fna')
    assert through_natten._why_not(*arguments) == ''


def test_compiled(natten: list[dict]) -> None:
    tensors = torch.randn(3, 1, 7, 9, 2, 32)
    output = torch.compile(neighborhood_attention, backend='eager')(*tensors, 3)
    with implementation('kernels', 'cpu'):
        torch.testing.assert_close(output, neighborhood_attention(*tensors, 3))
