"""Calls of the operators for check_aarch64.py, as the harness reads them, with their references."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmlocalattn.ops.neighborhood import neighborhood_attention_reference
from mmlocalattn.ops.query_and_attend import query_and_attend_reference
from mmlocalattn.ops.slide import shift_kernel, slide_attention_reference
from mmlocalattn.ops.sparse_scan import sparse_scan_attention_reference
from mmlocalattn.ops.stand_alone import stand_alone_attention_reference

DTYPES = {
    torch.float64: 'double',
    torch.float32: 'float',
    torch.bfloat16: 'mmlocalattn::cpu::BFloat16',
}
"""Names in C++."""

# Always the same numbers: where a gradient cancels by chance, its last digits are lost.
RANDOM = np.random.default_rng(2)


def draw(*shape: int) -> Tensor:
    return torch.from_numpy(RANDOM.standard_normal(shape))


def fill(value: float, *shape: int) -> Tensor:
    return torch.full(shape, value, dtype=torch.float64)


@dataclass
class Problem:
    """A call of an operator.

    Attributes:
        operator: Folder of its kernels.
        tensors: The differentiable inputs in fp64.
        reference: The output from those, of any dtype.
        numbers: What the harness reads, from those and the gradient of the output: numbers, and
            tensors.
        name: Of the harness's function; by default that of the folder.
        gradients: From what the harness writes after the output; by default that itself.
        dtypes: That it makes sense for.
    """

    operator: str
    tensors: Sequence[Tensor]
    reference: Callable[..., Tensor]
    numbers: Callable[..., list]
    name: str = ''
    gradients: Callable[..., Sequence[Tensor]] = lambda *arrays: arrays
    dtypes: Sequence[torch.dtype] = tuple(DTYPES)

    def run_reference(
        self, tensors: Sequence[Tensor], grad_output: Tensor, dtype: torch.dtype
    ) -> list[Tensor]:
        """Output and gradients, computed in a dtype."""
        tensors = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        output = self.reference(*tensors)
        return [output, *torch.autograd.grad(output, tensors, grad_output.to(output))]


def make_neighborhood(
    shape: Sequence[int],
    kernel: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    bias: bool = False,
) -> Problem:
    scale = shape[4] ** -0.5
    table = (shape[3], 2 * kernel[0] - 1, 2 * kernel[1] - 1)
    shapes = [shape] * 3 + [table] * bias

    def numbers(query: Tensor, key: Tensor, value: Tensor, *rest: Tensor) -> list:
        *biases, grad_output = rest
        padded = fill(0, 0)
        if biases:  # a vector of values past the end may be read
            padded = torch.cat([biases[0].flatten(), fill(0, 16)])
        windows = (kernel[0], dilation[0], kernel[1], dilation[1])
        return [*shape, *windows, scale, query, key, value, grad_output, padded]

    return Problem(
        'neighborhood',
        [draw(*size) for size in shapes],
        lambda query, key, value, bias=None: neighborhood_attention_reference(
            query, key, value, bias, kernel, dilation, scale
        )[0],
        numbers,
        gradients=lambda *arrays: arrays if bias else arrays[:3],
    )


def make_rotary(shape: Sequence[int], kernel: tuple[int, int]) -> Problem:
    """Sparse scan attention without anchors."""
    scale, (height, width, dim) = 0.6, (*shape[1:3], shape[4])
    angles = torch.linspace(0, 7, height * width * dim, dtype=torch.float64)
    angles = angles.view(height, width, dim)
    sin, cos = angles.sin(), angles.cos()

    def numbers(query: Tensor, key: Tensor, value: Tensor, grad_output: Tensor) -> list:
        windows = (kernel[0], 1, kernel[1], 1)
        return [*shape, *windows, scale, query, key, value, grad_output, fill(0, 0), sin, cos]

    return Problem(
        'neighborhood',
        [draw(*shape) for _ in range(3)],
        lambda query, key, value: sparse_scan_attention_reference(
            query, key, value, sin, cos, kernel, (1, 1), (1, 1), scale
        )[0],
        numbers,
        name='rotary',
    )


def make_query_and_attend(
    shape: Sequence[int],
    queries: int,
    kernel: tuple[int, int],
    stride: int,
    tables: bool = True,
    spread: float = 1,
    dtypes: Sequence[torch.dtype] = tuple(DTYPES),
) -> Problem:
    heads = shape[3]
    sizes = (queries, heads, *kernel)

    def numbers(scores: Tensor, values: Tensor, *rest: Tensor) -> list:
        bias, scale = rest[:2] if tables else (fill(0, *sizes), fill(1, *sizes))
        bias, scale = bias.flatten(2), scale.flatten(2)
        factor = bias.exp()
        table = torch.stack([bias, factor, scale, scale * factor], 2)
        ranges = bias.amax(2).clamp(min=0) - bias.amin(2).clamp(max=0)
        windows = (queries, kernel[0], stride, kernel[1])
        return [*shape, *windows, scores, values, rest[-1], table, ranges]

    scores = spread * draw(*shape[:3], queries, heads)
    return Problem(
        'query_and_attend',
        [scores, draw(*shape), *(draw(*sizes) for _ in range(2 * tables))],
        lambda scores, values, bias=None, scale=None: query_and_attend_reference(
            scores, values, bias, scale, kernel, stride
        )[0],
        numbers,
        gradients=lambda *arrays: arrays if tables else arrays[:2],
        dtypes=dtypes,
    )


def make_slide(shape: Sequence[int], kernel: int) -> Problem:
    scale, taps, (heads, dim) = 0.8, kernel**2, shape[3:]

    def numbers(query: Tensor, key: Tensor, value: Tensor, *rest: Tensor) -> list:
        weight, bias, position_bias, grad_output = rest
        maps = (query, key, value, grad_output)
        return [*shape, *maps, kernel, scale, weight, bias, position_bias]

    def gradients(query: Tensor, key: Tensor, value: Tensor, *rest: Tensor) -> list[Tensor]:
        taps_last = rest[0].view(dim, taps, taps + 1)
        return [query, key, value, taps_last[..., :taps], taps_last[..., taps], rest[1]]

    weight = shift_kernel(dim, kernel) + draw(dim, taps, kernel, kernel) / taps
    return Problem(
        'slide',
        [
            *(draw(*shape) for _ in range(3)),
            weight,
            draw(dim, taps),
            draw(heads, kernel, kernel),
        ],
        lambda query, key, value, weight, bias, position_bias: slide_attention_reference(
            query, key, value, weight, bias, position_bias, scale
        )[0],
        numbers,
        gradients=gradients,
    )


def make_stand_alone(shape: Sequence[int], kernel: tuple[int, int], zero_padding: bool) -> Problem:
    scale, (heads, dim) = 0.5, shape[3:]

    def numbers(query: Tensor, key: Tensor, value: Tensor, *rest: Tensor) -> list:
        rows, columns, grad_output = rest
        maps = (query, key, value, grad_output)
        return [*shape, *maps, *kernel, zero_padding, scale, rows, columns]

    return Problem(
        'stand_alone',
        [
            *(draw(*shape) for _ in range(3)),
            draw(heads, kernel[0], dim // 2),
            draw(heads, kernel[1], dim - dim // 2),
        ],
        lambda query, key, value, rows, columns: stand_alone_attention_reference(
            query, key, value, rows, columns, kernel, zero_padding, scale
        )[0],
        numbers,
    )


def problems() -> list[Problem]:
    """Odd sizes, and maps of several of the harness's pieces: 12 rows, 16 columns."""
    return [
        make_neighborhood((2, 13, 21, 2, 5), (3, 5)),
        make_neighborhood((1, 9, 18, 2, 8), (5, 3), bias=True),
        make_neighborhood((1, 14, 19, 2, 6), (3, 3), (2, 2), bias=True),  # groups side by side
        make_neighborhood((1, 7, 20, 1, 17), (7, 7)),
        make_rotary((1, 7, 18, 2, 6), (3, 3)),
        make_query_and_attend((2, 13, 19, 2, 5), 2, (3, 3), 1),
        make_query_and_attend((1, 25, 35, 3, 7), 3, (3, 5), 2),
        make_query_and_attend((1, 8, 10, 1, 9), 1, (7, 7), 2, tables=False),
        # Powers of such scores are not shared by windows.
        make_query_and_attend(
            (1, 9, 18, 2, 4), 2, (3, 3), 1, spread=9, dtypes=(torch.float32, torch.bfloat16)
        ),
        make_query_and_attend((1, 9, 18, 2, 4), 2, (3, 3), 2, spread=90, dtypes=(torch.float64,)),
        make_slide((2, 13, 19, 2, 5), 3),
        make_slide((1, 13, 18, 1, 6), 5),
        make_slide((1, 5, 9, 2, 3), 7),
        make_stand_alone((2, 13, 9, 2, 4), (3, 3), False),
        make_stand_alone((1, 13, 19, 2, 8), (5, 3), True),
        make_stand_alone((1, 5, 18, 2, 5), (3, 7), True),
        make_stand_alone((1, 6, 9, 2, 7), (7, 7), False),
    ]
