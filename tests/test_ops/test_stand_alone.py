"""Stand-alone self-attention against the paper's equation and the operator contract."""

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
from mmlocalattn.ops.stand_alone import (
    stand_alone_attention,
    stand_alone_attention_backward_reference,
    stand_alone_attention_reference,
)


def stand_alone_oracle(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_embedding: Tensor,
    column_embedding: Tensor,
    kernel: tuple,
    zero_padding: bool,
    scale: float,
) -> Tensor:
    """Plain loops over every position, head and tap."""
    output = torch.zeros_like(query)
    batch, height, width, heads, _ = query.shape
    for b, y, x, n in np.ndindex(batch, height, width, heads):
        logits, values = [], []
        for a, c in np.ndindex(kernel):
            i, j = y + a - kernel[0] // 2, x + c - kernel[1] // 2
            is_inside = 0 <= i < height and 0 <= j < width
            if not is_inside and not zero_padding:
                continue
            embedding = torch.cat([row_embedding[n, a], column_embedding[n, c]])
            tap = embedding + (key[b, i, j, n] if is_inside else 0)
            logits.append(scale * sum(float(q) * float(k) for q, k in zip(query[b, y, x, n], tap)))
            values.append(value[b, i, j, n] if is_inside else torch.zeros_like(value[b, y, x, n]))
        weights = np.exp(np.array(logits) - max(logits))
        output[b, y, x, n] = sum(float(w) * v for w, v in zip(weights / weights.sum(), values))
    return output


def case(shape: tuple, kernel: tuple, padding: str = 'mask', scale: float = 1.0) -> Case:
    return dict(shape=shape, kernel_size=kernel, padding=padding, scale=scale)


class TestStandAloneAttention(SoftmaxContract):
    op_name = 'stand_alone_attention'
    autocast_keeps = (3, 4)
    reference = staticmethod(stand_alone_attention_reference)
    cases: ClassVar[dict[str, Case]] = {
        'k3': case((2, 5, 7, 2, 4), (3, 3)),
        'k3_zero': case((1, 6, 5, 3, 5), (3, 3), 'zero'),
        'k5_odd_head_dim': case((1, 9, 6, 2, 7), (5, 5)),
        'k7': case((1, 8, 18, 2, 8), (7, 7)),
        'k9_exceeds_the_map': case((1, 4, 3, 1, 8), (9, 9)),
        'k11_exceeds_the_map_zero': case((1, 3, 5, 2, 3), (11, 11), 'zero'),
        'rectangular': case((1, 7, 10, 1, 20), (5, 3), scale=-0.4),
        'rectangular_zero': case((2, 3, 9, 2, 6), (3, 7), 'zero'),
        'window_is_map': case((1, 5, 3, 2, 8), (5, 3)),
        'map_1x1': case((2, 1, 1, 2, 4), (3, 3)),
        'map_1x1_zero': case((1, 1, 1, 2, 1), (3, 5), 'zero'),
    }
    cuda_cases: ClassVar[dict[str, Case]] = {
        'dim8': case((1, 19, 37, 2, 8), (7, 5), scale=0.5),
        'dim12_zero': case((1, 6, 9, 2, 12), (3, 5), 'zero'),
        'dim32': case((1, 7, 10, 2, 32), (5, 3), scale=0.2),
        'dim64_k11': case((1, 5, 6, 1, 64), (11, 11), scale=0.1),
        'dim130': case((1, 3, 4, 1, 130), (3, 3), scale=0.1),
    }
    large_case: ClassVar[Case] = case((1, 100, 167, 8, 8), (7, 7), 'zero', scale=0.3)
    steep_cases: ClassVar[dict[str, Case]] = {
        'k5': case((1, 13, 19, 2, 16), (5, 5), scale=4.0),
        'k7_zero': case((1, 9, 20, 1, 34), (7, 3), 'zero', scale=-4.0),
    }
    errors: ClassVar[dict[str, tuple[Case, str]]] = {
        'even_kernel': (
            dict(kernel_size=(4, 3)),
            r'must be odd and from 3 to 11, got kernel_size=\(4, 3\)',
        ),
        'kernel_of_one': (dict(kernel_size=(1, 3)), 'must be odd and from 3 to 11'),
        'large_kernel': (dict(kernel_size=(3, 13)), r'from 3 to 11, got kernel_size=\(3, 13\)'),
        'not_a_pair': (dict(kernel_size=(3, 3, 3)), r'must be an int or a \(height, width\) pair'),
        'padding': (dict(padding='reflect'), r"must be 'mask' or 'zero', got padding='reflect'"),
        'shape': ({1: lambda key: key[:, :4]}, r"must have one shape, .*'key': \(2, 4, 7, 2, 4\)"),
        'dimensions': ({0: lambda query: query[0]}, r'must have shape \(B, H, W, num_heads, '),
        'dtype': ({2: Tensor.half}, r"must have one dtype, .*'value': torch.float16"),
        'device': ({1: lambda key: key.to('meta')}, "must be on one device, .*'key': 'meta'"),
        'row_shape': (
            {3: lambda row: row[:, :2]},
            r'row_embedding must have shape .* = \(2, 3, 2\), got \(2, 2, 2\)',
        ),
        'column_shape': (
            {4: lambda column: column[..., :1]},
            r'column_embedding must have shape .* = \(2, 3, 2\), got \(2, 3, 1\)',
        ),
        'row_dtype': (
            {3: Tensor.half},
            'row_embedding must have the dtype of query, .* got torch.float16 and torch.float32',
        ),
        'column_device': (
            {4: lambda column: column.to('meta')},
            'column_embedding must be on the device of query, got meta and cpu',
        ),
    }

    def tensors(
        self, case: Case, dtype: torch.dtype = torch.float64, device: str = 'cpu'
    ) -> tuple[Tensor, ...]:
        *_, heads, head_dim = case['shape']
        half = head_dim // 2
        shapes = [case['shape']] * 3
        for kernel, channels in zip(case['kernel_size'], (half, head_dim - half)):
            shapes.append((heads, kernel, channels))
        return tuple(torch.randn(shape, dtype=dtype, device=device) for shape in shapes)

    def steep_tensors(self, case: Case) -> tuple[Tensor, ...]:
        query, key, value, *embeddings = self.tensors(case, torch.float32)
        embeddings = [whole(table, 2, 1.0) for table in embeddings]
        parity = case['shape'][4] // 2 % 2  # of the first channel of the second embedding
        embeddings[0][..., ::2] = embeddings[1][..., parity::2] = 0
        return *with_large_products(query, key), value, *embeddings

    def call(self, tensors: tuple[Tensor, ...], case: Case) -> Tensor:
        return stand_alone_attention(*tensors, case['kernel_size'], case['padding'], case['scale'])

    def op_args(self, tensors: tuple[Tensor, ...], case: Case) -> tuple:
        return *tensors, case['kernel_size'], case['padding'] == 'zero', case['scale']

    def oracle(self, tensors: tuple[Tensor, ...], case: Case) -> Tensor:
        return stand_alone_oracle(*self.op_args(tensors, case))

    def backward_reference(self, grad_output: Tensor, args: tuple, outputs: tuple) -> list[Tensor]:
        return list(
            stand_alone_attention_backward_reference(grad_output, *args[:5], outputs[1], *args[5:])
        )


def make_tensors(shape: tuple, kernel: tuple, dtype: torch.dtype = torch.float32) -> tuple:
    return TestStandAloneAttention().tensors(case(shape, kernel), dtype)


def test_defaults() -> None:
    tensors = make_tensors((1, 6, 8, 2, 4), (3, 3))
    assert torch.equal(
        stand_alone_attention(*tensors, 3),
        stand_alone_attention(*tensors, (3, 3), padding='mask', scale=1.0),
    )


@pytest.mark.parametrize('padding', ['mask', 'zero'])
def test_is_a_window_of_equal_weights_without_query(padding: str) -> None:
    """Then the output is a mean: over the window on the map, or over the whole window."""
    query, key, value, *embeddings = make_tensors((1, 6, 8, 2, 4), (3, 5), torch.float64)
    output = stand_alone_attention(query * 0, key, value, *embeddings, (3, 5), padding)
    expected = torch.nn.functional.avg_pool2d(
        value.flatten(3).permute(0, 3, 1, 2),
        (3, 5),
        stride=1,
        padding=(1, 2),
        count_include_pad=padding == 'zero',
    )
    torch.testing.assert_close(output.flatten(3), expected.permute(0, 2, 3, 1))


def test_zero_padding_is_attention_on_a_padded_map() -> None:
    query, key, value, *embeddings = make_tensors((1, 6, 8, 2, 4), (5, 3), torch.float64)
    output = stand_alone_attention(query, key, value, *embeddings, (5, 3), 'zero')
    padded = (torch.nn.functional.pad(t, (0, 0, 0, 0, 1, 1, 2, 2)) for t in (query, key, value))
    expected = stand_alone_attention(*padded, *embeddings, (5, 3))
    torch.testing.assert_close(output, expected[:, 2:-2, 1:-1])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_embeddings_may_be_float32(dtype: torch.dtype) -> None:
    """Parameters are, where maps have the dtype of autocast."""
    *maps, row, column = make_tensors((1, 6, 8, 2, 4), (5, 3))
    maps = [tensor.to(dtype) for tensor in maps]
    inputs = [tensor.requires_grad_() for tensor in (*maps, row, column)]
    output = stand_alone_attention(*inputs, (5, 3))
    output.sum().backward()
    assert [tensor.grad.dtype for tensor in inputs] == [dtype] * 3 + [torch.float32] * 2
    exact = stand_alone_attention(*(tensor.detach().double() for tensor in inputs), (5, 3))
    assert output.dtype == dtype
    assert relative_error(output, exact) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(key=torch.zeros(1, 3, 4, 2, 4)), 'one shape and dtype'),
        (dict(kernel_size=(4, 3)), 'a window of 4 taps'),
        (dict(kernel_size=(13, 3)), 'a window of 13 taps'),
        (dict(row_embedding=torch.zeros(2, 5, 2)), r'row_embedding must have shape \[2, 3, 2\]'),
        (
            dict(column_embedding=torch.zeros(2, 3, 1)),
            r'column_embedding must have shape \[2, 3, 2\]',
        ),
        (dict(query=torch.zeros(5, 6, 2, 4)), r'expected \(B, H, W, num_heads, head_dim\)'),
    ],
)
def test_kernel_refuses_what_would_corrupt_memory(change: dict, message: str) -> None:
    if not has_kernel('stand_alone_attention', 'cpu'):
        pytest.skip('no compiled kernel on this platform')
    names = ('query', 'key', 'value', 'row_embedding', 'column_embedding')
    args = dict(zip(names, make_tensors((1, 5, 6, 2, 4), (3, 3))))
    args |= dict(kernel_size=(3, 3), zero_padding=False, scale=1.0) | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mmlocalattn.stand_alone_attention(**args)


@pytest.mark.parametrize('isa', CPU_ISAS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ('size', 'kernel', 'padding'),
    [
        ((67, 81), (5, 3), 'mask'),  # several pieces along both axes
        ((70, 37), (3, 7), 'zero'),
        ((7, 70), (3, 3), 'mask'),  # several vectors of columns
        ((15, 45), (11, 11), 'zero'),
        ((3, 150), (3, 11), 'mask'),
    ],
)
def test_cpu_kernel_on_wide_maps(
    size: tuple,
    kernel: tuple,
    padding: str,
    dtype: torch.dtype,
    isa: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not has_kernel('stand_alone_attention', 'cpu'):
        pytest.skip('no compiled kernel on this platform to compare')
    monkeypatch.setenv('MMLOCALATTN_CPU_ISA', isa)
    TestStandAloneAttention().check_large_map(case((1, *size, 2, 11), kernel, padding), dtype)


@pytest.mark.needs_torch('2.4', 'padding an empty tensor')
@pytest.mark.parametrize('shape', [(1, 5, 6, 0, 4), (0, 5, 6, 2, 4), (1, 5, 6, 2, 0)], ids=str)
def test_gradients_of_an_empty_map(shape: tuple) -> None:
    tensors = tuple(tensor.requires_grad_() for tensor in make_tensors(shape, (3, 3)))
    output = stand_alone_attention(*tensors, kernel_size=(3, 3))
    grads = torch.autograd.grad(output.sum(), tensors, materialize_grads=True)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in tensors]
    assert all(grad.abs().sum() == 0 for grad in grads)
