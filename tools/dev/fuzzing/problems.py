"""A random call of a random operator from a seed, and how far its results are from the oracle."""

import contextlib
import functools
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fuzzing import oracles
from mmlocalattn import ops

ISAS = ('portable', 'avx2', 'avx512', 'avx512_bf16')
"""Values of MMLOCALATTN_CPU_ISA; a machine has some."""

MOST = 2_000_000  # numbers of a gathered tensor
LAYOUTS = ('contiguous', 'joint', 'heads_first', 'channels_first', 'offset', 'inner', 'expanded')
VALUES = ('normal', 'normal', 'normal', 'large', 'denormal', 'masked')

ALLOWED = 1.0
"""Largest error in units of rounding, see :func:`Problem.check`. Right kernels stay below 0.7; a
tap too many or too few makes some thousands in float32, and more than ten in bfloat16."""


@dataclass
class Problem:
    """A call.

    Attributes:
        operator: Its name in ``mmlocalattn.ops``.
        tensors: Arguments that are tensors or None, as the operator takes them.
        call: The operator, of the tensors.
        oracle: The same in float64.
        text: What it is, in a line.
        logits: How large the logits are, roughly.
    """

    operator: str
    tensors: list[Tensor | None]
    call: Callable[..., Tensor]
    oracle: Callable[..., Tensor]
    text: str
    logits: Callable[[list], float]

    def check(self) -> tuple[str, float]:
        """Run forward and backward.

        Returns:
            The tensor with the largest error, and this error divided by the spacing of numbers of
            the dtype, the size of the tensor's values and, for float32 and float64, whose exp
            sees the rounding of the logits, the size of the logits. NaN if only one of both is.
        """
        inputs = [None if x is None else _leaf(x) for x in self.tensors]
        exact = [None if x is None else x.detach().double().requires_grad_() for x in self.tensors]
        output, truth = self.call(*inputs), self.oracle(*exact)
        grad = torch.randn(output.shape, dtype=torch.float64).to(output.dtype)
        places = [place for place, x in enumerate(inputs) if x is not None]
        ours, theirs = ([x for x in tensors if x is not None] for tensors in (inputs, exact))
        grads = torch.autograd.grad(output, ours, grad)
        truths = torch.autograd.grad(truth, theirs, grad.double())
        dtype = output.dtype
        unit = torch.finfo(dtype).eps
        if dtype in (torch.float32, torch.float64):
            unit *= 1 + self.logits(self.tensors)
        others = _largest([x for x in self.tensors if x is not None])
        spread = _largest([grad]) * others * math.sqrt(output.shape[-1])
        worst = ('output', _error(output, truth, unit, others))
        for place, gradient, expected in zip(places, grads, truths):
            error = _error(gradient, expected, unit, spread * others)
            if not error <= worst[1]:
                worst = (f'gradient of argument {place}', error)
        return worst


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _largest(tensors: Sequence[Tensor]) -> float:
    finite = [x.detach().double()[x.isfinite()].abs() for x in tensors]
    return max((x.max().item() for x in finite if x.numel()), default=0.0)


def _error(ours: Tensor, truth: Tensor, unit: float, size: float) -> float:
    """In units, of values of that size; NaN if one of both is NaN where the other is not.

    No value is nearer to the truth than the spacing of the smallest numbers of its dtype.
    """
    if ours.shape != truth.shape:
        return math.nan
    if not ours.numel():
        return 0.0
    about, ours = torch.finfo(ours.dtype), ours.detach().double()
    if not torch.equal(ours.isfinite(), truth.isfinite()):
        return math.nan
    finite = truth.isfinite()
    if not finite.any():
        return 0.0
    floor = torch.finfo(torch.float32).tiny / torch.finfo(torch.float32).eps
    floor = max(floor, about.tiny * about.eps)
    difference = (ours - truth)[finite].abs().max().item()
    return difference / (unit * (size + truth[finite].abs().max().item()) + floor)


def problem(seed: int) -> Problem:
    """The call of a seed; also sets the number of threads and the instruction set."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(rng.choice((1, 2, 3)))
    isa = rng.choice(isas_of_machine())
    os.environ['MMLOCALATTN_CPU_ISA'] = isa
    operator = rng.choice(ops.OPS)
    dtype = rng.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16))
    made = _MAKERS[operator](rng, dtype)
    made.text = f'{operator} {str(dtype).removeprefix("torch.")}, {isa}, {made.text}'
    return made


@functools.cache
def isas_of_machine() -> tuple[str, ...]:
    """The instruction sets that the kernels can be told to use here, or the one that is set.

    Raises:
        RuntimeError: If there are no kernels.
    """
    if not all(ops.has_kernel(name, 'cpu') for name in ops.OPS):
        raise RuntimeError('mmlocalattn has no compiled kernels to call')
    if os.environ.get('MMLOCALATTN_CPU_ISA'):
        return (os.environ['MMLOCALATTN_CPU_ISA'],)
    tensor, found = torch.ones(1, 1, 1, 1, 1), []
    for isa in ISAS:
        os.environ['MMLOCALATTN_CPU_ISA'] = isa
        with contextlib.suppress(RuntimeError):
            ops.neighborhood_attention(tensor, tensor, tensor, 1)
            found.append(isa)
    return tuple(found)


def _between(rng: random.Random, low: int, high: int) -> int:
    """Each order of magnitude as often."""
    return min(high, int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))))


def _shape(rng: random.Random, taps: int, least: Sequence[int] = (1, 1)) -> list[int]:
    """(B, H, W, n, d) of which windows can be gathered."""
    shape = [
        *(rng.choice((0, 1, 1, 2, 3)), _between(rng, 1, 300), _between(rng, 1, 300)),
        *(rng.randint(1, 4), _between(rng, 1, 256)),
    ]
    shape[1:3] = [max(side, size) for side, size in zip(shape[1:3], least)]
    floors = (1, *least, 1, 1)
    while math.prod(max(size, 1) for size in shape) * taps > MOST:
        place = max(range(5), key=lambda place: shape[place] / floors[place])
        shape[place] = max(floors[place], shape[place] // 2)
        if shape[place] == floors[place] and all(
            size <= floor for size, floor in zip(shape, floors)
        ):
            break
    return shape


def _odd(rng: random.Random, high: int) -> int:
    return 2 * rng.randint(0, (high - 1) // 2) + 1


def _place(rng: random.Random, x: Tensor) -> tuple[Tensor, str]:
    """The same numbers (but where expanded) in another layout of memory; (B, H, W, n, d)."""
    layout = rng.choice(LAYOUTS)
    if layout == 'joint':
        x = torch.stack([x, x + 1, x - 1], 3)[:, :, :, 0]
    elif layout == 'heads_first':
        x = x.permute(0, 3, 1, 2, 4).contiguous().permute(0, 2, 3, 1, 4)
    elif layout == 'channels_first':
        x = x.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    elif layout == 'offset':
        start = rng.randint(1, 7)
        buffer = torch.cat([x.new_full((start,), torch.nan), x.flatten()])
        x = buffer[start:].view(x.shape)
    elif layout == 'inner':
        buffer = x.new_full((x.shape[0], *(size + 3 for size in x.shape[1:])), torch.nan)
        inside = (slice(None), *(slice(2, -1) for _ in range(4)))
        buffer[inside] = x
        x = buffer[inside]
    elif layout == 'expanded':
        axis = rng.choice((0, 3))
        x = x.narrow(axis, 0, min(1, x.shape[axis])).expand(x.shape)
    return x, layout


def _maps(
    rng: random.Random, shape: Sequence[int], dtype: torch.dtype, number: int
) -> tuple[list[Tensor], str]:
    """Tensors of a shape, and what is special about them."""
    values = rng.choice(VALUES)
    maps, layouts = [], []
    for index in range(number):
        x = torch.randn(*shape)
        if values == 'large' and index == 0:
            x = x * 30
        elif values == 'denormal' and index == number - 1:
            x = x * (1e-40 if dtype != torch.float16 else 1e-7)
        placed, layout = _place(rng, x.to(dtype))
        maps.append(placed)
        layouts.append(layout)
    text = f'{tuple(shape)}, {"/".join(layouts)}, {values}, {torch.get_num_threads()} threads'
    return maps, text


def _masked(rng: random.Random, table: Tensor, text: str, centre: tuple[int, ...]) -> Tensor:
    """A table of biases, some of them -inf where values are to be masked, never of the centre."""
    if 'masked' not in text:
        return table
    mask = torch.rand(table.shape) < 0.2
    middle: tuple[Any, ...] = (..., *centre)
    mask[middle] = False
    return table.masked_fill(mask, -torch.inf)


def _scale(rng: random.Random, head_dim: int) -> float:
    return rng.choice((head_dim**-0.5, head_dim**-0.5, 0.3, -0.2, 0.0))


def _logits(
    taps: int, scale: float = 0.0, bias: int | None = None, factor: float = 1.0
) -> Callable[[list], float]:
    """How large what exp sees is at most, roughly.

    Args:
        taps: Of a window. The logarithm of the sum of their weights is rounded as the logits are.
        scale: Of the products of query and key, the first two tensors.
        bias: The place of the tensor that is added to them.
        factor: By which keys can exceed those of the tensor.
    """

    def largest(tensors: list) -> float:
        query, key = tensors[:2]
        products = abs(scale) * _largest([query]) * _largest([key]) * query.shape[-1] ** 0.5
        added = None if bias is None else tensors[bias]
        return math.log(taps) + factor * products + (0 if added is None else _largest([added]))

    return largest


def _window(rng: random.Random, most: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel and dilation."""
    kernel = (_odd(rng, most), _odd(rng, most))
    return kernel, (_between(rng, 1, 9), _between(rng, 1, 9))


def _neighborhood(rng: random.Random, dtype: torch.dtype) -> Problem:
    kernel, dilation = _window(rng, 13)
    least = tuple(size * step for size, step in zip(kernel, dilation))
    shape = _shape(rng, math.prod(kernel), least)
    maps, text = _maps(rng, shape, dtype, 3)
    scale, bias = _scale(rng, shape[-1]), None
    if rng.random() < 0.5:
        table = torch.randn(shape[3], *(2 * size - 1 for size in kernel))
        bias = _masked(rng, table, text, tuple(size - 1 for size in kernel)).to(dtype)
    return Problem(
        'neighborhood_attention',
        [*maps, bias],
        lambda q, k, v, b: ops.neighborhood_attention(q, k, v, kernel, dilation, b, scale),
        lambda q, k, v, b: oracles.neighborhood(q, k, v, b, kernel, dilation, scale),
        f'{text}, kernel {kernel}, dilation {dilation}, bias {bias is not None}, scale {scale:.2g}',
        _logits(math.prod(kernel), scale, bias=3),
    )


def _sparse_scan(rng: random.Random, dtype: torch.dtype) -> Problem:
    local, _ = _window(rng, 9)
    anchor, dilation = _window(rng, 9)
    least = tuple(max(a, b * step) for a, b, step in zip(local, anchor, dilation))
    shape = _shape(rng, max(math.prod(local), math.prod(anchor)), least)
    rotary = None
    if rng.random() < 0.5:
        shape[-1] += shape[-1] % 2
        angles = torch.rand(*shape[1:3], shape[-1]) * 6
        rotary = (angles.sin(), angles.cos())
    maps, text = _maps(rng, shape, dtype, 3)
    scale = _scale(rng, shape[-1])
    exact = None if rotary is None else (rotary[0].double(), rotary[1].double())
    return Problem(
        'sparse_scan_attention',
        [*maps],
        lambda q, k, v: ops.sparse_scan_attention(q, k, v, local, anchor, dilation, scale, rotary),
        lambda q, k, v: oracles.sparse_scan(q, k, v, exact, local, anchor, dilation, scale),
        f'{text}, local {local}, anchor {anchor}, dilation {dilation}, '
        f'rotary {rotary is not None}, scale {scale:.2g}',
        _logits(math.prod(local) + math.prod(anchor), scale),
    )


def _slide(rng: random.Random, dtype: torch.dtype) -> Problem:
    size = rng.choice((3, 5, 7))
    shape = _shape(rng, size**4 if size < 7 else size**3)
    maps, text = _maps(rng, shape, dtype, 3)
    scale, head_dim = _scale(rng, shape[-1]), shape[-1]
    table = dtype if dtype in (torch.float32, torch.float64) else rng.choice((dtype, torch.float32))
    shift = torch.eye(size**2).view(size**2, size, size).expand(head_dim, -1, -1, -1)
    weight = (shift + torch.randn(shift.shape) * 0.1).to(table)
    bias = torch.randn(head_dim, size**2).to(table) if rng.random() < 0.5 else None
    position = torch.randn(shape[3], size, size).to(table) if rng.random() < 0.5 else None
    return Problem(
        'slide_attention',
        [*maps, weight, bias, position],
        functools.partial(ops.slide_attention, scale=scale),
        functools.partial(oracles.slide, scale=scale),
        f'{text}, kernel {size}, bias {bias is not None}, position {position is not None}, '
        f'tables {table}, scale {scale:.2g}',
        _logits(size**2, scale, bias=5, factor=4 * size),
    )


def _query_and_attend(rng: random.Random, dtype: torch.dtype) -> Problem:
    kernel, stride = (_odd(rng, 13), _odd(rng, 13)), rng.choice((1, 2))
    shape = _shape(rng, math.prod(kernel))
    (values,), text = _maps(rng, shape, dtype, 1)
    queries = rng.randint(1, 4)
    (scores,), layout = _maps(rng, [*shape[:3], queries, shape[3]], dtype, 1)
    table = dtype if dtype in (torch.float32, torch.float64) else rng.choice((dtype, torch.float32))
    bias = attention_scale = None
    if rng.random() < 0.6:
        numbers = torch.randn(queries, shape[3], *kernel)
        bias = _masked(rng, numbers, text, tuple(size // 2 for size in kernel)).to(table)
    if rng.random() < 0.6:
        attention_scale = torch.randn(queries, shape[3], *kernel).to(table)
    return Problem(
        'query_and_attend',
        [scores, values, bias, attention_scale],
        functools.partial(ops.query_and_attend, kernel_size=kernel, stride=stride),
        functools.partial(oracles.query_and_attend, kernel=kernel, stride=stride),
        f'{text}, scores {layout}, kernel {kernel}, stride {stride}, bias {bias is not None}, '
        f'attention_scale {attention_scale is not None}, tables {table}',
        lambda tensors: _logits(math.prod(kernel), bias=2)(tensors) + _largest(tensors[:1]),
    )


def _stand_alone(rng: random.Random, dtype: torch.dtype) -> Problem:
    kernel = (_odd(rng, 9) + 2, _odd(rng, 9) + 2)
    shape = _shape(rng, math.prod(kernel))
    maps, text = _maps(rng, shape, dtype, 3)
    scale, head_dim = _scale(rng, shape[-1]), shape[-1]
    padding: Literal['mask', 'zero'] = rng.choice(('mask', 'zero'))
    embeddings = [
        torch.randn(shape[3], size, channels).to(dtype)
        for size, channels in zip(kernel, (head_dim // 2, head_dim - head_dim // 2))
    ]
    return Problem(
        'stand_alone_attention',
        [*maps, *embeddings],
        functools.partial(
            ops.stand_alone_attention, kernel_size=kernel, padding=padding, scale=scale
        ),
        functools.partial(oracles.stand_alone, kernel=kernel, padding=padding, scale=scale),
        f'{text}, kernel {kernel}, padding {padding}, scale {scale:.2g}',
        _logits(math.prod(kernel), scale, factor=2),
    )


_MAKERS: dict[str, Any] = {
    'neighborhood_attention': _neighborhood,
    'sparse_scan_attention': _sparse_scan,
    'slide_attention': _slide,
    'query_and_attend': _query_and_attend,
    'stand_alone_attention': _stand_alone,
}
