"""Query and attend against its definition and the operator contract."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from contract import CPU_ISAS, Case, SoftmaxContract, relative_error, whole
from torch import Tensor

from mmlocalattn.ops import has_kernel
from mmlocalattn.ops.query_and_attend import (
    query_and_attend,
    query_and_attend_backward_reference,
    query_and_attend_reference,
    window_padding,
)


def window_oracle(index: int, length: int, kernel: int, stride: int) -> dict[int, int]:
    """Taps of window ``index`` that are on the map, and their positions."""
    first = index * stride - kernel // 2
    return {tap: first + tap for tap in range(kernel) if 0 <= first + tap < length}


def query_and_attend_oracle(
    scores: Tensor,
    values: Tensor,
    position_bias: Tensor | None,
    attention_scale: Tensor | None,
    kernel: tuple,
    stride: int,
) -> Tensor:
    """Plain loops over every window, query, head and tap."""
    batch, height, width, queries, heads = scores.shape
    rows, cols = (height + stride - 1) // stride, (width + stride - 1) // stride
    output = values.new_zeros(batch, rows, cols, heads, values.shape[-1])
    for b, y, x, q, n in np.ndindex(batch, rows, cols, queries, heads):
        logits, factors, vectors = [], [], []
        for i, row in window_oracle(y, height, kernel[0], stride).items():
            for j, col in window_oracle(x, width, kernel[1], stride).items():
                bias = 0 if position_bias is None else position_bias[q, n, i, j]
                logits.append(float(scores[b, row, col, q, n] + bias))
                factors.append(1 if attention_scale is None else attention_scale[q, n, i, j])
                vectors.append(values[b, row, col, n])
        weights = np.exp(np.array(logits) - max(logits))
        for weight, factor, vector in zip(weights / weights.sum(), factors, vectors):
            output[b, y, x, n] += factor * float(weight) * vector
    return output


def case(
    scores: tuple,
    head_dim: int,
    kernel: tuple,
    stride: int = 1,
    bias: bool = True,
    scale: bool = True,
) -> Case:
    return dict(
        scores=scores, head_dim=head_dim, kernel_size=kernel, stride=stride, bias=bias, scale=scale
    )


class TestQueryAndAttend(SoftmaxContract):
    op_name = 'query_and_attend'
    reference = staticmethod(query_and_attend_reference)
    cases: ClassVar[dict[str, Case]] = {
        'k3': case((2, 5, 7, 2, 2), 4, (3, 3)),
        'k3_even_stride2': case((1, 6, 8, 2, 3), 8, (3, 3), 2),
        'k3_odd_stride2': case((2, 5, 7, 2, 1), 8, (3, 3), 2, scale=False),
        'k5_no_tables': case((1, 7, 6, 2, 2), 5, (5, 5), bias=False, scale=False),
        'k5_even_stride2': case((1, 8, 10, 3, 1), 6, (5, 5), 2, bias=False),
        'k7': case((1, 8, 9, 2, 1), 3, (7, 7)),
        'k7_mixed_stride2': case((1, 9, 6, 1, 2), 17, (7, 7), 2),
        'k9_larger_than_map': case((1, 4, 7, 2, 2), 4, (9, 9)),
        'k13_larger_than_map_stride2': case((1, 8, 5, 1, 1), 3, (13, 13), 2),
        'window_is_map': case((1, 5, 7, 1, 1), 9, (5, 7)),
        'rectangular': case((1, 4, 9, 2, 1), 2, (1, 11), scale=False),
        'rectangular_stride2': case((1, 6, 7, 4, 1), 1, (11, 1), 2),
        'map_1x1': case((2, 1, 1, 2, 2), 4, (3, 3)),
        'map_1x1_stride2': case((1, 1, 1, 1, 1), 4, (7, 7), 2),
        'map_2x1_stride2': case((1, 2, 1, 1, 1), 4, (3, 3), 2),
    }
    cuda_cases: ClassVar[dict[str, Case]] = {
        'dim16': case((1, 9, 18, 2, 2), 16, (3, 3)),
        'dim32': case((1, 11, 13, 2, 2), 32, (7, 5)),
        'dim64_stride2': case((1, 13, 18, 2, 1), 64, (5, 5), 2),
        'dim40_many_queries': case((1, 9, 8, 9, 1), 40, (3, 3)),
        'dim8_heads': case((1, 5, 10, 2, 11), 8, (3, 3)),
    }
    large_case: ClassVar[Case] = case((1, 100, 167, 2, 8), 8, (3, 3))
    steep_cases: ClassVar[dict[str, Case]] = {
        'k3': case((1, 23, 19, 2, 2), 8, (3, 3)),
        'k7_stride2': case((1, 24, 37, 3, 2), 5, (7, 5), 2),
    }
    errors: ClassVar[dict[str, tuple[Case, str]]] = {
        'even_kernel': (
            dict(kernel_size=(4, 3)),
            r'must be odd and at most 13, got kernel_size=\(4, 3\)',
        ),
        'negative_kernel': (dict(kernel_size=(-1, 3)), 'must be odd and at most 13'),
        'large_kernel': (dict(kernel_size=(3, 15)), r'at most 13, got kernel_size=\(3, 15\)'),
        'not_a_pair': (dict(kernel_size=(3, 3, 3)), r'must be an int or a \(height, width\) pair'),
        'stride': (dict(stride=3), 'stride must be 1 or 2, got stride=3'),
        'dimensions': (
            {0: lambda scores: scores[0]},
            r'scores must have shape \(B, H, W, num_queries, num_heads\) .* got scores \(5, 7, 2',
        ),
        'size': ({1: lambda values: values[:, :4]}, r'one \(B, H, W\) and num_heads, got scores'),
        'heads': ({1: lambda values: values[:, :, :, :1]}, r'num_heads, .* values \(2, 5, 7, 1, 4'),
        'no_position': (
            {0: lambda scores: scores[:, :0], 1: lambda values: values[:, :0]},
            'the map must have a position',
        ),
        'no_query': (
            {
                0: lambda scores: scores[..., :0, :],
                2: lambda bias: bias[:0],
                3: lambda scale: scale[:0],
            },
            r'there must be a query and a channel, got scores \(2, 5, 7, 0, 2\)',
        ),
        'no_channel': (
            {1: lambda values: values[..., :0]},
            r'a query and a channel, .* values \(2, 5, 7, 2, 0\)',
        ),
        'dtype': ({1: Tensor.half}, r"must have one dtype, .*'values': torch.float16"),
        'integer': ({0: Tensor.int, 1: Tensor.int}, 'must be floating point'),
        'device': ({1: lambda values: values.to('meta')}, "on one device, .*'values': 'meta'"),
        'bias_shape': (
            {2: lambda bias: bias[..., 1:]},
            r'position_bias must have shape .* = \(2, 2, 3, 3\), got \(2, 2, 3, 2\)',
        ),
        'bias_dtype': ({2: Tensor.half}, 'position_bias must be fp32, fp64 or torch.float32, got'),
        'scale_device': (
            {3: lambda scale: scale.to('meta')},
            'attention_scale must be on cpu, as scores, got meta',
        ),
        'scale_integer': ({3: Tensor.int}, 'attention_scale must be fp32, .* got torch.int32'),
    }
    autocast_keeps = (2, 3)

    def tensors(
        self, case: Case, dtype: torch.dtype = torch.float64, device: str = 'cpu'
    ) -> tuple[Tensor, ...]:
        *size, queries, heads = case['scores']
        table = (queries, heads, *case['kernel_size'])
        shapes = [case['scores'], (*size, heads, case['head_dim'])]
        shapes += [table] * (case['bias'] + case['scale'])
        return tuple(torch.randn(shape, dtype=dtype, device=device) for shape in shapes)

    def steep_tensors(self, case: Case) -> tuple[Tensor, ...]:
        """A head without cliffs and others with them, which the kernels take in two ways."""
        scores, values, bias, scale = self.tensors(case, torch.float32)
        cliffs = whole(scores, 3, 3328.0)
        cliffs[..., 0] = 9984
        return cliffs + whole(scores, 16, 0.125), values, whole(bias, 8, 0.125), scale

    def op_args(self, tensors: tuple[Tensor, ...], case: Case) -> tuple:
        scores, values, *tables = tensors
        bias = tables[0] if case['bias'] else None
        scale = tables[-1] if case['scale'] else None
        return scores, values, bias, scale, case['kernel_size'], case['stride']

    def call(self, tensors: tuple[Tensor, ...], case: Case) -> Tensor:
        return query_and_attend(*self.op_args(tensors, case))

    def output_shape(self, tensors: tuple[Tensor, ...], case: Case) -> tuple[int, ...]:
        batch, height, width, *vector = tensors[1].shape
        return torch.Size(
            (batch, -(-height // case['stride']), -(-width // case['stride']), *vector)
        )

    def oracle(self, tensors: tuple[Tensor, ...], case: Case) -> Tensor:
        return query_and_attend_oracle(*self.op_args(tensors, case))

    def backward_reference(self, grad_output: Tensor, args: tuple, outputs: tuple) -> list[Tensor]:
        grads = query_and_attend_backward_reference(grad_output, *args[:4], outputs[1], *args[4:])
        return [grad for grad, arg in zip(grads, args) if arg is not None]


@pytest.mark.parametrize('length', [1, 2, 3, 8, 13])
@pytest.mark.parametrize('kernel', [1, 3, 5, 13])
@pytest.mark.parametrize('stride', [1, 2])
def test_padding_is_oracle(length: int, kernel: int, stride: int) -> None:
    first = window_oracle(0, length, kernel, stride)
    last = window_oracle((length - 1) // stride, length, kernel, stride)
    low, high = window_padding(length, kernel, stride)
    assert low == min(first)
    assert high >= kernel - 1 - max(last)


def test_stride_2_on_an_even_map_is_centred_on_even_positions() -> None:
    """Not as 'SAME' padding, which would begin at position 0: the released model pads both sides
    alike."""
    values = torch.arange(6.0).view(1, 1, 6, 1, 1)
    scores = torch.zeros(1, 1, 6, 1, 1)
    output = query_and_attend(scores, values, kernel_size=(1, 3), stride=2)
    torch.testing.assert_close(output.flatten(), torch.tensor([0.5, 2.0, 4.0]))


@pytest.mark.parametrize('isa', CPU_ISAS)
@pytest.mark.parametrize(
    ('dtype', 'magnitude'),
    [
        (torch.float64, 1e5),
        (torch.float32, 1e4),
        (torch.float32, 30),
        (torch.bfloat16, 1e4),
        (torch.float16, 1e3),
    ],
    ids=str,
)
@pytest.mark.parametrize('stride', [1, 2])
def test_scores_of_any_magnitude(
    dtype: torch.dtype, magnitude: float, stride: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbors with scores far apart, a region far below the rest, a region far above it."""
    monkeypatch.setenv('MMLOCALATTN_CPU_ISA', isa)
    scores = torch.randn(1, 24, 40, 2, 3)
    scores[:, :8] = scores[:, :8].sign() * magnitude
    scores[:, 8:16] -= magnitude
    scores[:, 16:] += magnitude
    values, bias = torch.randn(1, 24, 40, 3, 8), torch.randn(2, 3, 5, 5)
    tensors = [tensor.to(dtype) for tensor in (scores, values, bias, bias.flip(0))]
    contract, problem = TestQueryAndAttend(), case(scores.shape, 8, (5, 5), stride)
    grad_output = torch.randn(contract.output_shape(tensors, problem)).to(dtype)
    actual = contract.run(tensors, problem, grad_output)
    exact = [tensor.double() for tensor in tensors]
    expected = contract.run_reference(exact, problem, grad_output.double())
    # Of a logit as large as that, and of the sum of the weights that backward gets, fp32 keeps
    # an absolute error of eps * magnitude.
    rounding = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps * magnitude)
    rounding = torch.finfo(dtype).eps * magnitude if dtype == torch.float64 else rounding
    for ours, truth in zip(actual, expected, strict=True):
        assert ours.isfinite().all()
        assert relative_error(ours, truth) < 2 * rounding


def test_masked_positions_get_no_weight() -> None:
    """A score of -inf takes a position out, a window without any other is NaN as in softmax."""
    scores, values = torch.randn(1, 6, 7, 2, 1), torch.randn(1, 6, 7, 1, 4)
    scores[:, :, 4:] = float('-inf')
    output = query_and_attend(scores, values, kernel_size=3)
    expected = query_and_attend(scores[:, :, :4], values[:, :, :4], kernel_size=3)
    torch.testing.assert_close(output[:, :, :4], expected)
    assert output[:, :, 5:].isnan().all()


@pytest.mark.parametrize('number', ['nan', 'inf', '-inf'])
def test_bias_that_is_not_finite(number: str) -> None:
    """Is in the windows of its query and head alone, where softmax has it."""
    scores, values, bias = torch.randn(1, 6, 7, 2, 2), torch.randn(1, 6, 7, 2, 4), torch.zeros(4, 9)
    bias[1, 4] = float(number)
    bias = bias.view(2, 2, 3, 3)
    output = query_and_attend(scores, values, bias)
    expected = query_and_attend_reference(scores, values, bias, None, (3, 3), 1)[0]
    torch.testing.assert_close(output, expected, equal_nan=True)


def test_expanded_values_are_shared_by_heads() -> None:
    scores, shared = torch.randn(2, 5, 6, 2, 3), torch.randn(2, 5, 6, 1, 8, requires_grad=True)
    output = query_and_attend(scores, shared.expand(-1, -1, -1, 3, -1))
    for head in range(3):
        alone = query_and_attend(scores[..., head : head + 1], shared)
        torch.testing.assert_close(output[..., head : head + 1, :], alone)
    (grad,) = torch.autograd.grad(output.sum(), shared)
    values = shared.detach().repeat(1, 1, 1, 3, 1).requires_grad_()
    (expected,) = torch.autograd.grad(query_and_attend(scores, values).sum(), values)
    torch.testing.assert_close(grad, expected.sum(3, keepdim=True))


@pytest.mark.parametrize('isa', CPU_ISAS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ('size', 'kernel', 'stride', 'heads', 'dim'),
    [
        ((45, 70), (3, 3), 1, 3, 8),  # several tiles along both axes
        ((67, 81), (5, 3), 2, 2, 11),
        ((3, 150), (1, 13), 1, 1, 5),
        ((7, 33), (7, 9), 2, 10, 24),  # several groups of heads and chunks of channels
    ],
)
def test_cpu_kernel_on_wide_maps(
    size: tuple,
    kernel: tuple,
    stride: int,
    heads: int,
    dim: int,
    dtype: torch.dtype,
    isa: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv('MMLOCALATTN_CPU_ISA', isa)
    TestQueryAndAttend().check_large_map(case((2, *size, 2, heads), dim, kernel, stride), dtype)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(values=torch.zeros(1, 5, 5, 2, 4)), 'scores and values must have one map'),
        (dict(kernel_size=(4, 3)), 'a window of 4 positions'),
        (dict(kernel_size=(3, 15)), 'a window of 15 positions'),
        (dict(stride=3), 'stride 3'),
        (dict(position_bias=torch.zeros(2, 2, 3, 5)), r'a table must have shape \[2, 2, 3, 3\]'),
    ],
)
def test_kernel_refuses_what_would_corrupt_memory(change: dict, message: str) -> None:
    if not has_kernel('query_and_attend', 'cpu'):
        pytest.skip('no compiled kernel on this platform')
    args = dict(scores=torch.zeros(1, 5, 6, 2, 2), values=torch.zeros(1, 5, 6, 2, 4))
    args |= dict(position_bias=None, attention_scale=None, kernel_size=(3, 3), stride=1) | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mmlocalattn.query_and_attend(**args)
