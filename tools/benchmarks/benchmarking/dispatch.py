"""What bench_dispatch.py times: calls of the operators on a map of one position."""

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmlocalattn import ops

SIDE = 3
"""Of the windows, where they may exceed the map."""
CALLS = 20
"""In a block."""
Run = Callable[[], object]


def calls(name: str, head_dim: int, grad: bool) -> tuple[Callable, Callable, list[Tensor]]:
    """The public function, the operator below it, and the tensors of both."""
    shape = (1, 1, 1, 1, head_dim)
    maps = list(torch.randn(3, *shape))
    table = torch.randn(1, SIDE, head_dim // 2)
    weight = torch.randn(head_dim, SIDE**2, SIDE, SIDE)
    scores = torch.randn(1, 1, 1, 1, 1)
    window, one, scale = (SIDE, SIDE), (1, 1), head_dim**-0.5
    tensors: list[Tensor] = {
        'slide_attention': [*maps, weight],
        'query_and_attend': [scores, maps[2]],
        'stand_alone_attention': [*maps, table, table.clone()],
    }.get(name, maps)
    public, behind = {
        'neighborhood_attention': ((1,), (None, one, one, scale)),
        'sparse_scan_attention': ((1, 1, 1), (None, None, one, one, one, scale)),
        'slide_attention': ((), (None, None, scale)),
        'query_and_attend': ((None, None, SIDE), (None, None, window, 1)),
        'stand_alone_attention': ((SIDE,), (window, False, 1.0)),
    }[name]
    tensors = [tensor.requires_grad_(grad) for tensor in tensors]
    function, operator = getattr(ops, name), getattr(torch.ops.mmlocalattn, name).default
    return (
        lambda: function(*tensors, *public),
        lambda: operator(*tensors, *behind)[0],
        tensors,
    )


def runs_of(name: str, head_dim: int) -> dict[str, Run]:
    """What is timed for an operator, by name."""
    public, operator, _ = calls(name, head_dim, grad=False)
    recorded, _, tensors = calls(name, head_dim, grad=True)
    grad = torch.ones_like(recorded())

    def autocast() -> object:
        with torch.autocast('cpu', dtype=torch.bfloat16):
            return public()

    return {
        'forward': public,
        'operator': operator,
        'recorded': recorded,
        'forward+backward': lambda: torch.autograd.grad(recorded(), tensors, grad),
        'autocast': autocast,
    }


def product_runs() -> dict[str, Run]:
    """A product of matrices of one value: what PyTorch itself needs for a call."""
    left, right = torch.randn(1, 1), torch.randn(1, 1)
    leaves = [left.clone().requires_grad_(), right.clone().requires_grad_()]
    grad = torch.ones(1, 1)

    def autocast() -> object:
        with torch.autocast('cpu', dtype=torch.bfloat16):
            return torch.mm(left, right)

    return {
        'forward': lambda: torch.mm(left, right),
        'forward+backward': lambda: torch.autograd.grad(torch.mm(*leaves), leaves, grad),
        'autocast': autocast,
    }


def fastest(runs: Sequence[Run], rounds: int) -> list[float]:
    """Seconds of the processor for a call of each run."""
    best = [float('inf')] * len(runs)
    for _ in range(rounds):
        for place, run in enumerate(runs):
            run()
            start = time.thread_time()
            for _ in range(CALLS):
                run()
            best[place] = min(best[place], (time.thread_time() - start) / CALLS)
    return best


def measure(args: argparse.Namespace) -> list[dict]:
    """One record for each operator, one for the matrix product; times in microseconds.

    Raises:
        ValueError: If there is no such operator.
    """
    chosen = args.operators or ops.OPS
    unknown = {*chosen} - {*ops.OPS}
    if unknown:
        raise ValueError(
            f'no operator {", ".join(sorted(unknown))}: there are {", ".join(ops.OPS)}'
        )
    table = {'torch.mm': product_runs()}
    table |= {name: runs_of(name, args.head_dim) for name in chosen}
    names = [(way, run) for way, runs in table.items() for run in runs]
    best = fastest([table[way][run] for way, run in names], args.rounds)
    records: dict[str, dict] = {way: {'way': way} for way in table}
    for (way, run), seconds in zip(names, best):
        records[way][run] = 1e6 * seconds
    product = records['torch.mm']
    for record in records.values():
        for run in ('forward', 'forward+backward', 'autocast'):
            record[f'{run} of mm'] = record[run] / product[run]
        record['forward+backward of mm forward'] = record['forward+backward'] / product['forward']
        if 'operator' in record:
            record['checks'] = record['forward'] - record['operator']
            record['autograd'] = record['recorded'] - record['forward']
    return list(records.values())
