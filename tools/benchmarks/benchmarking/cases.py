"""Neighborhood and sparse scan attention as cases of bench_ops.py."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarking.baselines import WAYS, Attend, Problem
from mmlocalattn.layers.rotary import rotary_table
from mmlocalattn.ops.sparse_scan import rotate_pairs, sparse_scan_attention

TWO_OPS = 'two ops'


@dataclass(frozen=True)
class Neighborhood:
    """A neighborhood attention to be timed."""

    problem: Problem

    title = 'neighborhood_attention'
    window_title = 'kernel, dilation'
    tensor_names = ('dq', 'dk', 'dv', 'dbias')
    both_factor = 3.5

    @property
    def label(self) -> tuple[str, str]:
        """The map, the window."""
        problem = self.problem
        kernel = 'x'.join(map(str, dict.fromkeys(problem.kernel)))
        return map_label(problem), f'{kernel}, {problem.dilation[0]}'

    @property
    def steps(self) -> list[Problem]:
        return [self.problem]

    def ways(self, baselines: Sequence[str]) -> list[str]:
        return ['ours', *baselines]

    def make_tensors(self) -> list[Tensor | None]:
        return make_tensors(self.problem)

    def prepare(self, way: str) -> Attend:
        return WAYS[way](self.problem)


@dataclass(frozen=True)
class SparseScan:
    """A sparse scan attention to be timed. A baseline turns query and key, then runs its steps."""

    problem: Problem
    """Of the map; its window does not matter."""
    local: tuple[int, int]
    anchor: tuple[int, int]
    dilation: tuple[int, int]

    title = 'sparse_scan_attention'
    window_title = 'window, anchors, dilation'
    tensor_names = ('dq', 'dk', 'dv')
    both_factor = 3.5

    @property
    def label(self) -> tuple[str, str]:
        numbers = self.local[0], self.anchor[0], self.dilation[0]
        return map_label(self.problem), ', '.join(map(str, numbers))

    @property
    def steps(self) -> list[Problem]:
        windows = (self.local, (1, 1)), (self.anchor, self.dilation)
        return [
            replace(self.problem, kernel=kernel, dilation=dilation)
            for kernel, dilation in windows
            if kernel != (1, 1)
        ]

    def ways(self, baselines: Sequence[str]) -> list[str]:
        return ['ours', TWO_OPS, *baselines]

    def make_tensors(self) -> list[Tensor | None]:
        return make_tensors(self.problem)

    def prepare(self, way: str) -> Attend:
        problem = self.problem
        rotary = rotary_table(problem.height, problem.width, problem.head_dim, problem.device)
        if way == 'ours':
            window = self.local, self.anchor, self.dilation
            return lambda query, key, value, _: sparse_scan_attention(
                query, key, value, *window, rotary=rotary
            )
        steps = [WAYS['ours' if way == TWO_OPS else way](step) for step in self.steps]

        def attend(query: Tensor, key: Tensor, value: Tensor, _: Tensor | None) -> Tensor:
            query, key = (rotate_pairs(t, *rotary).to(t.dtype) for t in (query, key))
            for step in steps:
                value = step(query, key, value, None)
            return value

        return attend


def map_label(problem: Problem) -> str:
    batch = f'{problem.batch} x ' if problem.batch > 1 else ''
    return f'{batch}{problem.height} x {problem.width}, {problem.heads}'


def make_tensors(problem: Problem) -> list[Tensor | None]:
    """Query, key, value, and a bias or None."""
    shapes = [problem.shape] * 3
    if problem.bias:
        shapes.append((problem.heads, *(2 * kernel - 1 for kernel in problem.kernel)))
    tensors = [torch.randn(shape, **problem.options) for shape in shapes]
    return [*tensors] if problem.bias else [*tensors, None]
