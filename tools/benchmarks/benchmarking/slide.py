"""Slide attention for bench_ops.py, beside the eager forms of the released code.

The released module forms all copies of keys and values: in training by two grouped convolutions
each, of which one has the fixed one-hot kernels (`two convolutions`); with merged kernels by one
(`one convolution`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarking.baselines import Attend, Problem
from benchmarking.cases import map_label
from mmlocalattn.ops.flops import slide_multiply_adds
from mmlocalattn.ops.slide import shift_kernel, slide_attention, slide_attention_reference


class SlideProblem(Problem):
    """One slide attention; its window is a kernel of copies and taps."""

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.head_dim, self.taps, *self.kernel

    @property
    def gflop(self) -> float:
        return 2 * slide_multiply_adds(self.shape, self.weight_shape) / 1e9


@dataclass(frozen=True)
class Slide:
    """A slide attention to be timed.

    Its tensors are query, key, value, the learned kernels, the biases of the fixed and of the
    learned kernels, and the position bias.
    """

    problem: SlideProblem

    title = 'slide_attention'
    window_title = 'kernel'
    tensor_names = ('dq', 'dk', 'dv', 'dweight', 'dbias', 'dbias', 'dposition')

    @property
    def label(self) -> tuple[str, str]:
        """The map, the window."""
        return map_label(self.problem), str(self.problem.kernel[0])

    @property
    def steps(self) -> list[Problem]:
        return [self.problem]

    @property
    def both_factor(self) -> float:
        """Work of forward and backward over that of forward."""
        shapes = self.problem.shape, self.problem.weight_shape
        return slide_multiply_adds(*shapes, 2 + 5, 2 + 6) / slide_multiply_adds(*shapes)

    def ways(self, baselines: Sequence[str]) -> list[str]:
        return list(WAYS)

    def make_tensors(self) -> list[Tensor]:
        problem, options = self.problem, self.problem.options
        maps = [torch.randn(problem.shape, **options) for _ in range(3)]
        weight = torch.randn(problem.weight_shape, **options) / problem.taps
        biases = 0.1 * torch.randn(2, *weight.shape[:2], **options)
        return [*maps, weight, *biases, torch.randn(problem.heads, *problem.kernel, **options)]

    def prepare(self, way: str) -> Attend:
        return (WAYS | {'reference': _reference})[way](self.problem)


def _ours(problem: SlideProblem) -> Attend:
    shift = _shift(problem)

    def attend(*tensors: Tensor) -> Tensor:
        query, key, value, weight, fixed_bias, bias, position = tensors
        return slide_attention(query, key, value, shift + weight, fixed_bias + bias, position)

    return attend


def _reference(problem: SlideProblem) -> Attend:
    shift = _shift(problem)

    def attend(*tensors: Tensor) -> Tensor:
        query, key, value, weight, fixed_bias, bias, position = tensors
        merged = shift + weight, fixed_bias + bias
        return slide_attention_reference(query, key, value, *merged, position, problem.scale)[0]

    return attend


def _two_convolutions(problem: SlideProblem) -> Attend:
    shift = _shift(problem)

    def attend(*tensors: Tensor) -> Tensor:
        query, key, value, weight, fixed_bias, bias, position = tensors
        key, value = map(channels_first, (key, value))
        keys, values = (
            _copies(tensor, shift, fixed_bias) + _copies(tensor, weight, bias)
            for tensor in (key, value)
        )
        return _attend_to_copies(problem, query, keys, values, position)

    return attend


def _one_convolution(problem: SlideProblem) -> Attend:
    shift = _shift(problem)

    def attend(*tensors: Tensor) -> Tensor:
        query, key, value, weight, fixed_bias, bias, position = tensors
        merged = shift + weight, fixed_bias + bias
        keys, values = (_copies(channels_first(tensor), *merged) for tensor in (key, value))
        return _attend_to_copies(problem, query, keys, values, position)

    return attend


WAYS = {
    'ours': _ours,
    'two convolutions': _two_convolutions,
    'one convolution': _one_convolution,
}


def channels_first(tensor: Tensor) -> Tensor:
    """(B, H, W, heads, head_dim) to (B * heads, head_dim, H, W)."""
    return tensor.permute(0, 3, 4, 1, 2).flatten(0, 1)


def _shift(problem: SlideProblem) -> Tensor:
    return shift_kernel(problem.head_dim, problem.kernel[0], **problem.options)


def _copies(tensor: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B * heads, head_dim, H, W) to (B * heads, head_dim * k * k, H, W)."""
    weight, bias = weight.to(tensor.dtype).flatten(0, 1)[:, None], bias.flatten()
    return F.conv2d(tensor, weight, bias, padding=weight.shape[-1] // 2, groups=tensor.shape[1])


def _attend_to_copies(
    problem: SlideProblem, query: Tensor, keys: Tensor, values: Tensor, position: Tensor
) -> Tensor:
    shape = problem.batch, problem.heads, problem.head_dim, -1, problem.height, problem.width
    query = channels_first(query * problem.scale).reshape(shape)
    keys = keys.reshape(shape) + position.view(1, problem.heads, 1, problem.taps, 1, 1)
    weights = (query * keys).sum(2, keepdim=True).softmax(3)
    output = (weights * values.reshape(shape)).sum(3)  # (B, heads, head_dim, H, W)
    return output.permute(0, 3, 4, 1, 2)
