"""Slide attention against its definition, the golden arrays and the operator contract."""

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
from torch.nn.functional import linear

from mmlocalattn.ops import has_kernel
from mmlocalattn.ops.slide import (
    shift_kernel,
    slide_attention,
    slide_attention_backward_reference,
    slide_attention_reference,
)


def copy_oracle(tensor: Tensor, weight: Tensor, bias: Tensor | None, x: int, y: int, i: int):
    """Copy i of a map of one head (H, W, head_dim) at (y, x): (head_dim,)."""
    height, width, _ = tensor.shape
    kernel_size = weight.shape[-1]
    copy = torch.zeros_like(tensor[0, 0]) if bias is None else bias[:, i].clone()
    for a, b in np.ndindex(kernel_size, kernel_size):
        row, col = y + a - kernel_size // 2, x + b - kernel_size // 2
        if 0 <= row < height and 0 <= col < width:
            copy += weight[:, i, a, b] * tensor[row, col]
    return copy


def slide_oracle(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position_bias: Tensor | None,
    scale: float,
) -> Tensor:
    """Plain loops over every position, head, copy and tap."""
    output = torch.zeros_like(query)
    batch, height, width, heads, _ = query.shape
    copies = weight.shape[1]
    for b, y, x, n in np.ndindex(batch, height, width, heads):
        logits, values = [], []
        for i in range(copies):
            keys = copy_oracle(key[b, :, :, n], weight, bias, x, y, i)
            if position_bias is not None:
                keys = keys + position_bias[n].flatten()[i]
            logits.append(scale * float(query[b, y, x, n] @ keys))
            values.append(copy_oracle(value[b, :, :, n], weight, bias, x, y, i))
        weights = np.exp(np.array(logits) - max(logits))
        output[b, y, x, n] = sum(float(w) * v for w, v in zip(weights / weights.sum(), values))
    return output


def case(
    shape: tuple,
    kernel_size: int,
    bias: bool = True,
    position_bias: bool = True,
    scale: float | None = None,
) -> Case:
    return dict(
        shape=shape,
        kernel_size=kernel_size,
        bias=bias,
        position_bias=position_bias,
        scale=scale,
    )


class TestSlideAttention(SoftmaxContract):
    op_name = 'slide_attention'
    reference = staticmethod(slide_attention_reference)
    autocast_keeps = (3, 4, 5)
    cases: ClassVar[dict[str, Case]] = {
        'k3': case((2, 5, 7, 2, 4), 3),
        'k3_plain': case((1, 6, 5, 3, 5), 3, bias=False, position_bias=False),
        'k5': case((1, 4, 7, 1, 6), 5, position_bias=False, scale=0.7),
        'k7_larger_than_map': case((1, 4, 3, 2, 3), 7, bias=False),
        'window_is_map': case((1, 5, 5, 1, 1), 5),
        'map_1x1': case((2, 1, 1, 2, 4), 3),
        'one_row': case((1, 1, 20, 1, 2), 3, scale=-0.4),
    }
    cuda_cases: ClassVar[dict[str, Case]] = {
        'dim32': case((1, 9, 35, 2, 32), 3),  # several tiles
        'many_tiles': case((10, 1, 1, 13, 2), 3),  # more than one a block
    }
    large_case: ClassVar[Case] = case((1, 100, 167, 3, 32), 3)
    steep_cases: ClassVar[dict[str, Case]] = {
        'k3': case((1, 9, 19, 2, 32), 3, scale=4.0),
        'k5': case((1, 8, 11, 1, 16), 5, scale=-4.0),
    }
    errors: ClassVar[dict[str, tuple[Case, str]]] = {
        'even_kernel': (
            {3: lambda weight: torch.zeros(4, 16, 4, 4)},
            r'kernel size must be one of \(3, 5, 7\), got 4',
        ),
        'large_kernel': (
            {3: lambda weight: torch.zeros(4, 81, 9, 9)},
            r'kernel size must be one of \(3, 5, 7\), got 9',
        ),
        'no_kernel': (
            {3: lambda weight: weight.flatten(2)},
            r'shape \(head_dim, k \* k, k, k\), got \(4, 9, 9\)',
        ),
        'head_dim': (
            {3: lambda weight: weight[:3]},
            r'weight must have shape .* = \(4, 9, 3, 3\), got \(3, 9, 3, 3\)',
        ),
        'copies': (
            {3: lambda weight: weight[:, :5]},
            r'weight must have shape .* = \(4, 9, 3, 3\), got \(4, 5, 3, 3\)',
        ),
        'bias_shape': (
            {4: lambda bias: bias.flatten()},
            r'bias must have shape \(head_dim, k \* k\) = \(4, 9\), got \(36,\)',
        ),
        'position_bias_shape': (
            {5: lambda bias: bias[:1]},
            r'position_bias must have shape \(num_heads, k, k\) = \(2, 3, 3\), got \(1, 3, 3\)',
        ),
        'parameter_device': (
            {4: lambda bias: bias.to('meta')},
            'bias must be on the device of query, got meta and cpu',
        ),
        'parameter_dtype': (
            {3: Tensor.half},
            'weight must have the dtype of query, .* got torch.float16 and torch.float32',
        ),
        'shape': ({1: lambda key: key[:, :4]}, r"must have one shape, .*'key': \(2, 4, 7, 2, 4\)"),
        'dimensions': (
            {0: lambda query: query[0]},
            r'must have shape \(B, H, W, num_heads, head_dim\)',
        ),
        'dtype': ({2: Tensor.half}, r"must have one dtype, .*'value': torch.float16"),
    }

    def tensors(
        self, case: Case, dtype: torch.dtype = torch.float64, device: str = 'cpu'
    ) -> tuple[Tensor, ...]:
        options = dict(dtype=dtype, device=device)
        kernel_size, (heads, head_dim) = case['kernel_size'], case['shape'][3:]
        taps = kernel_size**2
        deformed = torch.randn(head_dim, taps, kernel_size, kernel_size, **options) / taps
        shapes = [(head_dim, taps)] * case['bias']
        shapes += [(heads, kernel_size, kernel_size)] * case['position_bias']
        return (
            *(torch.randn(case['shape'], **options) for _ in range(3)),
            shift_kernel(head_dim, kernel_size, **options) + deformed,
            *(torch.randn(shape, **options) for shape in shapes),
        )

    def steep_tensors(self, case: Case) -> tuple[Tensor, ...]:
        query, key, value, weight, bias, position_bias = self.tensors(case, torch.float32)
        head_dim, kernel_size = weight.shape[0], case['kernel_size']
        deformed = whole(weight, 1, 0.25)
        bias = whole(bias, 2, 0.5)
        deformed[::2] = bias[::2] = 0
        weight = shift_kernel(head_dim, kernel_size, dtype=torch.float32) + deformed
        position_bias = whole(position_bias, 1, 1 / 32)
        return *with_large_products(query, key), value, weight, bias, position_bias

    def biases(self, tensors: tuple[Tensor, ...], case: Case) -> tuple[Tensor | None, ...]:
        rest = list(tensors[4:])
        return tuple(rest.pop(0) if case[name] else None for name in ('bias', 'position_bias'))

    def call(self, tensors: tuple[Tensor, ...], case: Case) -> Tensor:
        return slide_attention(*tensors[:4], *self.biases(tensors, case), case['scale'])

    def op_args(self, tensors: tuple[Tensor, ...], case: Case) -> tuple:
        scale = tensors[0].shape[-1] ** -0.5 if case['scale'] is None else case['scale']
        return *tensors[:4], *self.biases(tensors, case), scale

    def oracle(self, tensors: tuple[Tensor, ...], case: Case) -> Tensor:
        return slide_oracle(*self.op_args(tensors, case))

    def backward_reference(self, grad_output: Tensor, args: tuple, outputs: tuple) -> list[Tensor]:
        grads = slide_attention_backward_reference(grad_output, *args[:6], outputs[1], args[6])
        return [grad for grad, tensor in zip(grads, args) if tensor is not None]


@pytest.mark.golden('slide_attention_*.npz')
def test_golden(golden_file: Path) -> None:
    """The released module: outputs to 1e-4, gradients to 1e-3."""
    with np.load(golden_file) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    params = {
        name.removeprefix('param/'): array.requires_grad_()
        for name, array in arrays.items()
        if name.startswith('param/')
    }
    _, heads, _, taps, _, _ = params['relative_position_bias_table'].shape
    kernel_size = round(taps**0.5)
    x = arrays['input'].requires_grad_()
    size = tuple(arrays['hw'].tolist())
    qkv = linear(x, params['qkv.weight'], params['qkv.bias']).unflatten(1, size)
    query, key, value = qkv.unflatten(-1, (heads, 3, -1)).unbind(4)  # q, k, v head by head
    head_dim = query.shape[-1]
    # The released convolutions are grouped by channel: output c * k * k + i is copy i of channel c.
    shift = params['dep_conv.weight'].view(head_dim, taps, kernel_size, kernel_size)
    assert torch.equal(shift, shift_kernel(head_dim, kernel_size))
    weight = shift.detach() + params['dep_conv1.weight'].view_as(shift)
    bias = (params['dep_conv.bias'] + params['dep_conv1.bias']).view(head_dim, taps)
    table = params['relative_position_bias_table'].view(heads, kernel_size, kernel_size)
    output = slide_attention(query, key, value, weight, bias, table)
    output = linear(output.flatten(3).flatten(1, 2), params['proj.weight'], params['proj.bias'])
    output.backward(arrays['grad_output'])
    assert relative_error(output, arrays['output']) < 1e-4
    assert relative_error(x.grad, arrays['grad_input']) < 1e-3
    grads = [name for name in arrays if name.startswith('grad_param/')]
    assert len(grads) == len(params) - 1  # the shift is fixed
    for name in grads:
        assert relative_error(params[name.removeprefix('grad_param/')].grad, arrays[name]) < 1e-3


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_parameters_are_not_rounded(dtype: torch.dtype) -> None:
    """fp32 kernels and biases beside 16 bit maps, with gradients of their own dtype."""
    contract = TestSlideAttention()
    problem = contract.cases['k3']
    tensors = contract.tensors(problem, torch.float32)
    mixed = (*(tensor.to(dtype) for tensor in tensors[:3]), *tensors[3:])
    grad_output = torch.randn_like(mixed[0])
    actual = contract.run(mixed, problem, grad_output)
    assert [result.dtype for result in actual] == [dtype] * 4 + [torch.float32] * 3
    exact = contract.run(tuple(tensor.float() for tensor in mixed), problem, grad_output.float())
    rounded = [result.to(dtype).to(result.dtype) for result in exact[:4]] + exact[4:]
    for ours, theirs in zip(actual[:4], rounded):
        assert relative_error(ours, theirs) < torch.finfo(dtype).eps
    for ours, theirs in zip(actual[4:], rounded[4:]):
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize('kernel_size', [3, 5, 7])
def test_one_hot_kernel_shifts(kernel_size: int) -> None:
    """Without a learned path it is attention to the window, zero-padded."""
    query, key, value = torch.randn(3, 1, 6, 9, 2, 8)
    windows = [
        torch.nn.functional.unfold(
            tensor.flatten(3).permute(0, 3, 1, 2), kernel_size, padding=kernel_size // 2
        ).view(2, 8, kernel_size**2, 6, 9)
        for tensor in (key, value)
    ]
    logits = torch.einsum('hwnd,ndkhw->hwnk', query[0], windows[0]) * 8**-0.5
    expected = torch.einsum('hwnk,ndkhw->hwnd', logits.softmax(-1), windows[1])
    output = slide_attention(query, key, value, shift_kernel(8, kernel_size))
    torch.testing.assert_close(output[0], expected)


def test_shift_kernel_takes_a_dtype() -> None:
    assert shift_kernel(2, 3, dtype=torch.float64, device='meta').dtype == torch.float64
    with pytest.raises(ValueError, match=r'must be one of \(3, 5, 7\), got 4'):
        shift_kernel(2, 4)


@pytest.mark.parametrize('isa', CPU_ISAS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ('shape', 'kernel_size'),
    [
        ((1, 35, 105, 2, 5), 3),  # several pieces along both axes
        ((1, 34, 200, 1, 3), 5),
        ((1, 40, 99, 1, 3), 7),
        ((2, 11, 19, 2, 35), 3),  # several blocks of channels
        ((5, 3, 9, 14, 2), 3),  # more pieces than groups
    ],
)
def test_cpu_kernel_on_many_pieces(
    shape: tuple, kernel_size: int, dtype: torch.dtype, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_kernel('slide_attention', 'cpu'):
        pytest.skip('no compiled kernel on this platform to compare')
    monkeypatch.setenv('MMLOCALATTN_CPU_ISA', isa)
    TestSlideAttention().check_large_map(case(shape, kernel_size), dtype)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(key=torch.zeros(1, 3, 4, 2, 4)), 'one shape and dtype'),
        (dict(query=torch.zeros(5, 6, 2, 4)), r'expected \(B, H, W, num_heads, head_dim\)'),
        (dict(weight=torch.zeros(4, 16, 4, 4)), 'must be 3, 5 or 7, got 4'),
        (dict(weight=torch.zeros(3, 9, 3, 3)), r'expected \[4, 9, 3, 3\], got \[3, 9, 3, 3\]'),
        (dict(bias=torch.zeros(4, 8)), r'expected \[4, 9\], got \[4, 8\]'),
        (dict(position_bias=torch.zeros(2, 9)), r'expected \[2, 3, 3\], got \[2, 9\]'),
    ],
)
def test_kernel_refuses_what_would_corrupt_memory(change: dict, message: str) -> None:
    if not has_kernel('slide_attention', 'cpu'):
        pytest.skip('no compiled kernel on this platform')
    args = dict(zip(('query', 'key', 'value'), torch.zeros(3, 1, 5, 6, 2, 4)))
    args |= dict(weight=torch.zeros(4, 9, 3, 3), bias=None, position_bias=None, scale=1.0) | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mmlocalattn.slide_attention(**args)


def test_backward_takes_a_logsumexp_of_another_dtype() -> None:
    """A direct call of the kernel, which must not read memory that is not there."""
    if not has_kernel('slide_attention', 'cpu'):
        pytest.skip('no compiled kernel on this platform')
    query, key, value, grad_output = torch.randn(4, 1, 5, 6, 2, 4, dtype=torch.float64)
    weight = torch.randn(4, 9, 3, 3, dtype=torch.float64)
    arguments = (query, key, value, weight, None, None)
    logsumexp = torch.ops.mmlocalattn.slide_attention(*arguments, 0.5)[1]
    backward = torch.ops.mmlocalattn._slide_attention_backward
    expected = backward(grad_output, *arguments, logsumexp, 0.5)
    actual = backward(grad_output, *arguments, logsumexp.float(), 0.5)
    for ours, truth in zip(actual, expected, strict=True):
        assert relative_error(ours, truth) < 1e-5
