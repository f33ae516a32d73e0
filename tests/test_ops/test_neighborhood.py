"""Neighborhood attention against its definition, the golden arrays and the operator contract."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from contract import (
    CPU_ISAS,
    Case,
    SoftmaxContract,
    relative_error,
    whole,
    with_large_products,
)
from torch import Tensor

from mmlocalattn.ops import has_kernel
from mmlocalattn.ops._window import window_indices
from mmlocalattn.ops.neighborhood import (
    neighborhood_attention,
    neighborhood_attention_backward_reference,
    neighborhood_attention_reference,
)


def window_oracle(index: int, length: int, kernel: int, dilation: int) -> list[int]:
    """Positions that ``index`` sees: those of its dilation group nearest to it, ``kernel`` in a
    row."""
    group = list(range(index % dilation, length, dilation))
    place = group.index(index)
    first = min(max(place - kernel // 2, 0), len(group) - kernel)
    return group[first : first + kernel]


def neighborhood_oracle(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    kernel: tuple,
    dilation: tuple,
    scale: float,
) -> Tensor:
    """Plain loops over every position, head and tap."""
    output = torch.zeros_like(query)
    batch, height, width, heads, _ = query.shape
    for b, y, x, n in np.ndindex(batch, height, width, heads):
        logits, values = [], []
        for i in window_oracle(y, height, kernel[0], dilation[0]):
            for j in window_oracle(x, width, kernel[1], dilation[1]):
                logit = scale * sum(
                    float(q) * float(k) for q, k in zip(query[b, y, x, n], key[b, i, j, n])
                )
                if bias is not None:
                    row, col = (
                        (i - y) // dilation[0] + kernel[0] - 1,
                        (j - x) // dilation[1] + kernel[1] - 1,
                    )
                    logit += float(bias[n, row, col])
                logits.append(logit)
                values.append(value[b, i, j, n])
        weights = np.exp(np.array(logits) - max(logits))
        output[b, y, x, n] = sum(float(w) * v for w, v in zip(weights / weights.sum(), values))
    return output


def case(
    shape: tuple,
    kernel: tuple,
    dilation: tuple = (1, 1),
    bias: bool = False,
    scale: float | None = None,
) -> Case:
    return dict(shape=shape, kernel_size=kernel, dilation=dilation, bias=bias, scale=scale)


class TestNeighborhoodAttention(SoftmaxContract):
    op_name = 'neighborhood_attention'
    reference = staticmethod(neighborhood_attention_reference)
    cases: ClassVar[dict[str, Case]] = {
        'k3': case((2, 5, 7, 2, 4), (3, 3)),
        'k3_bias': case((1, 6, 5, 3, 5), (3, 3), bias=True),
        'window_is_map': case((1, 7, 5, 1, 8), (7, 5), bias=True),
        'rectangular': case((1, 9, 6, 2, 3), (5, 3), scale=0.7),
        'dilated': case((1, 8, 9, 1, 16), (3, 3), (2, 3)),
        'dilated_rectangular_bias': case((1, 7, 10, 2, 20), (3, 5), (2, 2), bias=True),
        'map_1x1': case((2, 1, 1, 2, 4), (1, 1)),
        'kernel_1_wide_map': case((1, 3, 5, 1, 33), (1, 1), (3, 5)),
    }
    cuda_cases: ClassVar[dict[str, Case]] = {
        'dim16': case((2, 9, 11, 2, 16), (3, 3)),
        'dim32': case((1, 11, 13, 2, 32), (7, 5)),
        'dim64': case((1, 7, 13, 1, 64), (5, 7)),
        'dim128': case((1, 9, 8, 1, 128), (7, 3)),
        'dim16_dilated': case((1, 17, 13, 1, 16), (5, 3), (3, 2)),
        'dim32_dilated': case((1, 13, 20, 1, 32), (3, 5), (4, 3)),
        'dim64_dilated': case((1, 8, 9, 1, 64), (3, 3), (2, 3)),
        'dim128_dilated': case((1, 7, 11, 1, 128), (3, 5), (2, 2)),
        'dim32_bias': case((1, 7, 9, 2, 32), (5, 3), (1, 2), bias=True),
        'dim16_bias': case((2, 9, 7, 2, 16), (3, 5), (2, 1), bias=True, scale=-0.3),
        'dim32_bias_window_is_map': case((1, 12, 11, 1, 32), (11, 11), bias=True),
        'dim64_bias': case((1, 6, 8, 1, 64), (5, 7), bias=True),
        'dim128_bias': case((1, 5, 7, 1, 128), (3, 3), (1, 2), bias=True, scale=0.05),
        'dim32_bias_large': case((1, 3, 40, 1, 32), (1, 39), bias=True),
        'dim32_negative_scale': case((1, 5, 6, 1, 32), (3, 3), scale=-0.2),
        'dim64_zero_scale': case((1, 4, 6, 1, 64), (3, 3), scale=0.0),
        # Three parts or more of what a block reads pass through shared memory.
        'dim128_window_is_map': case((1, 11, 13, 1, 128), (11, 13)),
        'dim128_wide': case((1, 1, 70, 1, 128), (1, 69)),
        'dim32_tall': case((1, 70, 3, 1, 32), (23, 1), (3, 1)),
    }
    large_case: ClassVar[Case] = case((1, 100, 167, 2, 32), (15, 15), (6, 6))
    steep_cases: ClassVar[dict[str, Case]] = {
        'k5': case((1, 13, 19, 2, 32), (5, 5), scale=4.0),
        'k11_bias': case((1, 12, 21, 1, 16), (11, 11), bias=True, scale=-4.0),
        'dilated_odd_head_dim': case((1, 9, 20, 1, 13), (3, 5), (3, 2), bias=True, scale=4.0),
    }
    errors: ClassVar[dict[str, tuple[Case, str]]] = {
        'even_kernel': (
            dict(kernel_size=(4, 3)),
            r'must be odd and positive, got kernel_size=\(4, 3\)',
        ),
        'negative_kernel': (dict(kernel_size=(-1, 3)), 'must be odd and positive'),
        'not_a_pair': (dict(kernel_size=(3, 3, 3)), r'must be an int or a \(height, width\) pair'),
        'zero_dilation': (dict(dilation=(1, 0)), r'at least 1, got dilation=\(1, 0\)'),
        'too_large': (
            dict(kernel_size=(3, 3), dilation=(2, 1)),
            r'must not exceed the map, .* for a map of \(5, 7\)',
        ),
        'shape': ({1: lambda key: key[:, :4]}, r"must have one shape, .*'key': \(2, 4, 7, 2, 4\)"),
        'dimensions': (
            {0: lambda query: query[0]},
            r'must have shape \(B, H, W, num_heads, head_dim\)',
        ),
        'dtype': (
            {2: lambda value: value.half()},
            r"must have one dtype, .*'value': torch.float16",
        ),
        'integer': ({0: Tensor.int, 1: Tensor.int, 2: Tensor.int}, 'must be floating point'),
        'device': ({1: lambda key: key.to('meta')}, "must be on one device, .*'key': 'meta'"),
        'shape_of_value': ({2: lambda value: value[:, :4]}, r"'value': \(2, 4, 7, 2, 4\)"),
        'dtype_of_key': ({1: Tensor.half}, r"must have one dtype, .*'key': torch.float16"),
        'device_of_value': (
            {2: lambda value: value.to('meta')},
            r"must be on one device, .*'value': 'meta'",
        ),
        'bias_shape': (dict(bias=torch.zeros(2, 5, 3)), r'= \(2, 5, 5\), got \(2, 5, 3\)'),
        'bias_dtype': (
            dict(bias=torch.zeros(2, 5, 5, dtype=torch.float64)),
            'bias must have the dtype of query',
        ),
        'bias_device': (
            dict(bias=torch.zeros(2, 5, 5, device='meta')),
            'bias must be on the device of query',
        ),
    }

    def tensors(
        self, case: Case, dtype: torch.dtype = torch.float64, device: str = 'cpu'
    ) -> tuple[Tensor, ...]:
        shapes = [case['shape']] * 3
        if case['bias'] is True:
            shapes.append((case['shape'][3], *(2 * kernel - 1 for kernel in case['kernel_size'])))
        return tuple(torch.randn(shape, dtype=dtype, device=device) for shape in shapes)

    def steep_tensors(self, case: Case) -> tuple[Tensor, ...]:
        query, key, value, *bias = self.tensors(case, torch.float32)
        return *with_large_products(query, key), value, *(whole(table, 4, 0.25) for table in bias)

    def call(self, tensors: tuple[Tensor, ...], case: Case) -> Tensor:
        query, key, value, *bias = tensors
        bias = (
            bias[0]
            if bias
            else case['bias'] or None
            if isinstance(case['bias'], bool)
            else case['bias']
        )
        return neighborhood_attention(
            query, key, value, case['kernel_size'], case['dilation'], bias, case['scale']
        )

    def op_args(self, tensors: tuple[Tensor, ...], case: Case) -> tuple:
        query, key, value, *bias = tensors
        scale = query.shape[-1] ** -0.5 if case['scale'] is None else case['scale']
        return (
            query,
            key,
            value,
            bias[0] if bias else None,
            case['kernel_size'],
            case['dilation'],
            scale,
        )

    def oracle(self, tensors: tuple[Tensor, ...], case: Case) -> Tensor:
        return neighborhood_oracle(*self.op_args(tensors, case))

    def backward_reference(self, grad_output: Tensor, args: tuple, outputs: tuple) -> list[Tensor]:
        grads = neighborhood_attention_backward_reference(
            grad_output, *args[:4], *outputs, *args[4:]
        )
        return list(grads if args[3] is not None else grads[:3])


@pytest.mark.golden('na2d_*.npz')
def test_golden(golden_file: Path) -> None:
    """NATTEN 0.14.6's CPU operators: outputs to 1e-4, gradients to 1e-3."""
    with np.load(golden_file) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    maps = {  # (B, heads, H, W, head_dim) -> (B, H, W, heads, head_dim)
        name: array.permute(0, 2, 3, 1, 4) for name, array in arrays.items() if array.dim() == 5
    }
    inputs = [maps[name].contiguous().requires_grad_() for name in ('query', 'key', 'value')]
    bias = arrays['bias'].requires_grad_() if 'bias' in arrays else None
    kernel_size, dilation, scale = (
        arrays[name].item() for name in ('kernel_size', 'dilation', 'scale')
    )
    output = neighborhood_attention(*inputs, kernel_size, dilation, bias, scale)
    output.backward(maps['grad_output'])
    assert relative_error(output, maps['output']) < 1e-4
    for name, tensor in zip(('query', 'key', 'value'), inputs):
        assert relative_error(tensor.grad, maps[f'grad_{name}']) < 1e-3
    if bias is not None:
        assert relative_error(bias.grad, arrays['grad_bias']) < 1e-3


@pytest.mark.parametrize('length', [1, 3, 7, 8, 20])
@pytest.mark.parametrize('kernel', [1, 3, 5, 7])
@pytest.mark.parametrize('dilation', [1, 2, 3])
def test_window_is_oracle(length: int, kernel: int, dilation: int) -> None:
    """The index maths of the reference; that of the kernels is tested through their results."""
    if kernel * dilation > length:
        with pytest.raises(ValueError, match='must not exceed the map'):
            neighborhood_attention(*[torch.zeros(1, length, length, 1, 1)] * 3, kernel, dilation)
        return
    expected = [window_oracle(index, length, kernel, dilation) for index in range(length)]
    assert window_indices(length, kernel, dilation, torch.device('cpu')).tolist() == expected


def test_int_means_both_axes() -> None:
    query, key, value = torch.randn(3, 1, 6, 8, 1, 4)
    assert torch.equal(
        neighborhood_attention(query, key, value, 3, 2),
        neighborhood_attention(query, key, value, (3, 3), (2, 2)),
    )


def test_wrong_cpu_isa_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_kernel('neighborhood_attention', 'cpu'):
        pytest.skip('no compiled kernel on this platform')
    monkeypatch.setenv('MMLOCALATTN_CPU_ISA', 'avx1024')
    with pytest.raises(RuntimeError, match='MMLOCALATTN_CPU_ISA=avx1024 cannot be used here'):
        neighborhood_attention(*torch.randn(3, 1, 3, 3, 1, 4), 3)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(key=torch.zeros(1, 3, 4, 2, 4)), 'one shape and dtype'),
        (dict(kernel_size=(4, 3)), 'a window of 4 taps with dilation 1 does not fit 5 positions'),
        (dict(dilation=(2, 1)), 'a window of 3 taps with dilation 2 does not fit 5 positions'),
        (dict(bias=torch.zeros(2, 3, 3)), r'bias must have shape \[2, 5, 5\]'),
        (dict(query=torch.zeros(5, 6, 2, 4)), r'expected \(B, H, W, num_heads, head_dim\)'),
    ],
)
def test_kernel_refuses_what_would_corrupt_memory(change: dict, message: str) -> None:
    if not has_kernel('neighborhood_attention', 'cpu'):
        pytest.skip('no compiled kernel on this platform')
    args = dict(zip(('query', 'key', 'value'), torch.zeros(3, 1, 5, 6, 2, 4)))
    args |= dict(bias=None, kernel_size=(3, 3), dilation=(1, 1), scale=1.0) | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mmlocalattn.neighborhood_attention(**args)


@pytest.mark.parametrize('isa', CPU_ISAS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ('size', 'kernel', 'dilation'),
    [
        ((67, 81), (5, 3), (1, 1)),  # several pieces along both axes
        ((7, 70), (3, 3), (1, 1)),  # several vectors of columns
        ((9, 67), (3, 3), (2, 20)),  # dilation groups longer than a vector
        ((10, 47), (5, 7), (2, 3)),  # several dilation groups in a vector
        ((15, 45), (13, 13), (1, 1)),  # several chunks of a window
        ((3, 150), (1, 105), (1, 1)),  # one row of taps longer than a chunk
        ((57, 18), (3, 5), (19, 3)),  # groups of three rows: less than a tile
    ],
)
def test_cpu_kernel_on_wide_maps(
    size: tuple,
    kernel: tuple,
    dilation: tuple,
    dtype: torch.dtype,
    isa: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not has_kernel('neighborhood_attention', 'cpu'):
        pytest.skip('no compiled kernel on this platform to compare')
    monkeypatch.setenv('MMLOCALATTN_CPU_ISA', isa)
    TestNeighborhoodAttention().check_large_map(
        case((1, *size, 2, 11), kernel, dilation, bias=True), dtype
    )
