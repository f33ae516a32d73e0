"""Stand-alone self-attention for bench_ops.py, beside an eager form with copies of the windows.

There is no released code. `unfold` copies the window of every query and adds the embeddings to the
copies of the keys, as ports of the paper do, so that the products are two batched matrix products.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarking.baselines import Attend, Problem
from benchmarking.cases import map_label
from mmlocalattn.ops.stand_alone import stand_alone_attention, stand_alone_attention_reference


@dataclass(frozen=True)
class StandAlone:
    """A stand-alone self-attention to be timed.

    Its tensors are query, key, value, and the embeddings of rows and of columns.
    """

    problem: Problem
    """Its dilation is 1."""

    title = 'stand_alone_attention'
    window_title = 'kernel, head_dim'
    tensor_names = ('dq', 'dk', 'dv', 'drow', 'dcolumn')
    both_factor = 3.5

    @property
    def label(self) -> tuple[str, str]:
        """The map, the window."""
        problem = self.problem
        return map_label(problem), f'{problem.kernel[0]}, {problem.head_dim}'

    @property
    def steps(self) -> list[Problem]:
        return [self.problem]

    def ways(self, baselines: Sequence[str]) -> list[str]:
        return list(WAYS)

    def make_tensors(self) -> list[Tensor]:
        problem, options = self.problem, self.problem.options
        half = problem.head_dim // 2
        maps = [torch.randn(problem.shape, **options) for _ in range(3)]
        rows, columns = (
            torch.randn(problem.heads, kernel, channels, **options)
            for kernel, channels in zip(problem.kernel, (half, problem.head_dim - half))
        )
        return [*maps, rows, columns]

    def prepare(self, way: str) -> Attend:
        return (WAYS | {'reference': _reference})[way](self.problem)


def _ours(problem: Problem) -> Attend:
    return lambda query, key, value, rows, columns: stand_alone_attention(
        query, key, value, rows, columns, problem.kernel, scale=problem.scale
    )


def _reference(problem: Problem) -> Attend:
    return lambda query, key, value, rows, columns: stand_alone_attention_reference(
        query, key, value, rows, columns, problem.kernel, False, problem.scale
    )[0]


def _unfold(problem: Problem) -> Attend:
    ones = torch.ones(1, *problem.shape[1:3], 1, 1, **problem.options)
    inside = _windows(problem, ones)[..., 0]
    mask = torch.zeros_like(inside).masked_fill(inside == 0, -torch.inf)  # (1, H, W, 1, kh * kw)

    def attend(*tensors: Tensor) -> Tensor:
        query, key, value, rows, columns = tensors
        keys = _windows(problem, key) + _embeddings(problem, rows, columns)
        logits = (query * problem.scale)[..., None, :] @ keys.transpose(-1, -2)
        weights = (logits + mask[..., None, :]).softmax(-1)
        return (weights @ _windows(problem, value)).squeeze(-2)

    return attend


WAYS = {'ours': _ours, 'unfold': _unfold}


def _windows(problem: Problem, tensor: Tensor) -> Tensor:
    """(B, H, W, n, d) to (B, H, W, n, kh * kw, d), zeros outside the map."""
    kernel_rows, kernel_columns = problem.kernel
    rows, columns = kernel_rows // 2, kernel_columns // 2
    padded = F.pad(tensor, (0, 0, 0, 0, columns, columns, rows, rows))
    windows = padded.unfold(1, kernel_rows, 1).unfold(2, kernel_columns, 1)
    return windows.flatten(-2).transpose(-1, -2).contiguous()


def _embeddings(problem: Problem, rows: Tensor, columns: Tensor) -> Tensor:
    """One for each tap, (num_heads, kh * kw, head_dim)."""
    rows = rows[:, :, None].expand(-1, -1, problem.kernel[1], -1)
    columns = columns[:, None].expand(-1, problem.kernel[0], -1, -1)
    return torch.cat([rows, columns], -1).flatten(1, 2)
