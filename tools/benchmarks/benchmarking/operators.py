"""What bench_ops.py times: its cases, the check of every way, measuring."""

import argparse
import functools
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarking.baselines import Problem, Unavailable, has_backward, scratch_bytes
from benchmarking.cases import TWO_OPS, Neighborhood, SparseScan
from benchmarking.report import PASSES
from benchmarking.slide import Slide, SlideProblem
from benchmarking.stand_alone import StandAlone
from benchmarking.timing import Run, free_memory, peak_memory, replay_of, time_in_turns
from mmlocalattn.layers.scan_geometry import adaptive_scan
from mmlocalattn.ops._window import as_pair

MATRIX = 2048
TOLERANCE = {'float32': 1e-4, 'bfloat16': 4e-2, 'float16': 5e-3}

Case = Neighborhood | SparseScan | Slide | StandAlone


def make_cases(args: argparse.Namespace) -> list[Case]:
    cases: list[Case] = []
    make = functools.partial(make_problem, args)
    for batch in args.batch:
        for height, width, heads, kernel, dilation in args.shapes:
            problem = make(batch, height, width, heads, kernel, dilation, args.bias)
            cases.append(Neighborhood(problem))
        for height, width, heads in args.scan_shapes:
            problem = make(batch, height, width, heads)
            cases.append(SparseScan(problem, *adaptive_scan(height, width)))
        cases += [slide_case(args, batch, *shape) for shape in args.slide_shapes]
        cases += [stand_alone_case(args, batch, *shape) for shape in args.stand_alone_shapes]
    return cases


def small_cases(args: argparse.Namespace) -> list[Case]:
    """What shows every part of the window rule, on maps small enough for the reference."""
    cases: list[Case] = []
    if args.shapes:
        windows = (5, 1), (3, 3)
        problems = [make_problem(args, 2, 13, 19, 2, *window, args.bias) for window in windows]
        cases += map(Neighborhood, problems)
    if args.scan_shapes:
        cases.append(SparseScan(make_problem(args, 2, 13, 19, 2), (5, 5), (3, 3), (4, 4)))
    if args.slide_shapes:
        cases += [slide_case(args, 2, 13, 19, 2, kernel) for kernel in (3, 5)]
    if args.stand_alone_shapes:
        cases += [stand_alone_case(args, 2, 13, 19, 2, *rest) for rest in ((3, 8), (7, 5))]
    return cases


def slide_case(args: argparse.Namespace, *shape: int) -> Slide:
    batch, height, width, heads, kernel = shape
    return Slide(SlideProblem(**vars(make_problem(args, batch, height, width, heads, kernel))))


def stand_alone_case(args: argparse.Namespace, *shape: int) -> StandAlone:
    batch, height, width, heads, kernel, head_dim = shape
    problem = make_problem(args, batch, height, width, heads, kernel)
    return StandAlone(replace(problem, head_dim=head_dim))


def make_problem(
    args: argparse.Namespace,
    batch: int,
    height: int,
    width: int,
    heads: int,
    kernel: int | tuple[int, int] = 1,
    dilation: int = 1,
    bias: bool = False,
) -> Problem:
    return Problem(
        batch,
        height,
        width,
        heads,
        args.head_dim,
        as_pair(kernel, 'kernel'),
        (dilation, dilation),
        getattr(torch, args.dtype),
        args.device,
        bias,
    )


def with_grad(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Leaves with the values of ``tensors`` that collect gradients."""
    return [t if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]


def gradients(output: Tensor, tensors: Sequence[Tensor | None], grad: Tensor) -> list[Tensor]:
    inputs = [tensor for tensor in tensors if tensor is not None]
    return list(torch.autograd.grad(output, inputs, grad))


def check(case: Case, way: str, tolerance: float, backward: bool) -> None:
    """Compare a way with the reference in float32.

    Raises:
        Unavailable: If it cannot go here.
        SystemExit: If it gives another result.
    """
    attend = case.prepare(way)
    tensors = case.make_tensors()
    exact = with_grad(tensors, torch.float32)
    grad = torch.randn(case.problem.shape, device=case.problem.device)
    backward = backward and has_backward(way, case.problem)
    if backward:
        tensors = with_grad(tensors, case.problem.dtype)
    output, truth = attend(*tensors), case.prepare('reference')(*exact)
    actual, expected = [output], [truth]
    if backward:
        actual += gradients(output, tensors, grad.to(output.dtype))
        expected += gradients(truth, exact, grad)
    for name, ours, theirs in zip(('output', *case.tensor_names), actual, expected):
        error = ((ours.float() - theirs).abs().max() / theirs.abs().max()).item()
        if not error < tolerance:  # NaN is an error too
            raise SystemExit(
                f'error: {way} disagrees with the reference on {case.title} {case.label}: '
                f'{name} is off by {error:.1e} of its largest value'
            )


def check_all(args: argparse.Namespace) -> dict[tuple[str, str], str]:
    """Compare every way with the reference; for (operator, way) that cannot go here, say why."""
    reasons = {}
    for case in small_cases(args):
        for way in case.ways(args.baselines):
            try:
                check(case, way, TOLERANCE[args.dtype], not args.forward_only)
            except Unavailable as reason:
                reasons[case.title, way] = str(reason)
    return reasons


def matrix_product(args: argparse.Namespace) -> Run:
    """The product that every way is compared with."""
    options = dict(dtype=getattr(torch, args.dtype), device=args.device)
    return functools.partial(torch.mm, *torch.randn(2, MATRIX, MATRIX, **options))


def make_runs(case: Case, way: str, tensors: Sequence[Tensor | None]) -> dict[bool, Run]:
    """A forward pass, and a forward and backward pass."""
    attend = case.prepare(way)
    leaves = with_grad(tensors, case.problem.dtype)
    grad = torch.randn(case.problem.shape, **case.problem.options)
    return {
        False: lambda: attend(*tensors),
        True: lambda: gradients(attend(*leaves), leaves, grad),
    }


def why_not(case: Case, way: str, backward: bool) -> str | None:
    """Why a way cannot run one pass of a case; None if nothing speaks against it."""
    if backward and not has_backward(way, case.problem):
        return 'no backward pass on the CPU'
    needs = [scratch_bytes(way, step, backward) for step in case.steps]
    need = sum(needs) if backward else max(needs)  # a backward pass keeps what every step made
    free = free_memory(case.problem.device)
    if free is not None and need > 0.8 * free:
        return f'needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free'
    return None


def measure(case: Case, args: argparse.Namespace, reasons: dict, product: Run) -> list[dict]:
    """Time all ways of one case and a matrix product in turns; one record per way and pass."""
    tensors = case.make_tensors()
    records, runs = [], [product]
    for way in case.ways(args.baselines):
        passes: dict[bool, Run] = {}
        for backward, name in PASSES.items():
            if backward and args.forward_only:
                continue
            record = describe(case) | {'way': way, 'pass': name}
            records.append(record)
            reason = reasons.get((case.title, way)) or why_not(case, way, backward)
            try:
                if reason is None:
                    passes = passes or make_runs(case, way, tensors)
                    passes[backward]()
                    runs.append(passes[backward])
            except RuntimeError as error:  # out of memory, a window that the other cannot do
                if way in ('ours', TWO_OPS):
                    raise
                reason = str(error).strip().partition('\n')[0]
            if reason is not None:
                record['skipped'] = reason
    timed = [record for record in records if 'skipped' not in record]
    replays = [replay(record, run, args.device) for record, run in zip(timed, runs[1:])]
    recorded = [run for run in replays if run is not None]
    samples = time_in_turns([*runs, *recorded], args.device, args.rounds)
    product_rate = 2 * MATRIX**3 / 1e9 / statistics.median(samples[0])
    replay_samples = iter(samples[len(runs) :])
    for record, run, again, seconds in zip(timed, runs[1:], replays, samples[1:]):
        median = statistics.median(seconds)
        factor = case.both_factor if record['pass'] == PASSES[True] else 1.0
        rate = factor * sum(step.gflop for step in case.steps) / median
        record |= {
            'seconds': median,
            'samples': seconds,
            'gflops': rate,
            'matrix_product_gflops': product_rate,
            'fraction_of_matrix_product': rate / product_rate,
            'peak_bytes': peak_memory(run, args.device),
        }
        if again is not None:
            record['replay_samples'] = next(replay_samples)
            record['replay_seconds'] = statistics.median(record['replay_samples'])
    return records


def replay(record: dict, run: Run, device: torch.device) -> Run | None:
    """A CUDA graph of a run; None, and the reason in the record, if it cannot be recorded."""
    try:
        return replay_of(run, device)
    except RuntimeError as error:
        record['not_replayed'] = str(error).strip().partition('\n')[0]
        return None


def describe(case: Case) -> dict:
    problem = case.problem
    where, window = case.label
    return {
        'op': case.title,
        'map': where,
        'window': window,
        'window_title': case.window_title,
        'shape': list(problem.shape),
        'steps': [[list(step.kernel), list(step.dilation)] for step in case.steps],
        'tensor_bytes': 4 * problem.dtype.itemsize * torch.Size(problem.shape).numel(),
    }
