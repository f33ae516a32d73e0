"""Time the operators beside other ways to compute the same, and beside a matrix product.

Everything about one map is timed in turns in one process; the table shows medians. FLOPs are the
useful ones: 4 * B * heads * H * W * kh * kw * head_dim forward, 3.5 times that for forward and
backward. Before, every way is compared with the reference on small maps.
"""

import argparse
import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from attention_baselines import WAYS, Attend, Problem, Unavailable, has_backward, scratch_bytes
from benchmarking import (
    Run,
    environment,
    free_memory,
    peak_memory,
    print_table,
    time_in_turns,
    write_json,
)
from torch import Tensor

from mmlocalattn.layers.rotary import rotary_table
from mmlocalattn.layers.scan_geometry import adaptive_scan
from mmlocalattn.ops.sparse_scan import rotate_pairs, sparse_scan_attention

SHAPES = (
    '100x167,2,7,1',
    '100x167,2,15,6',
    '100x167,2,29,3',
    '50x84,8,7,7',
    '200x334,2,29,6',
    '200x334,2,7,28',
)
SCAN_SHAPES = ('200x334,2', '100x167,4', '50x84,8', '25x42,16')
TWO_OPS = 'two ops'
MATRIX = 2048
TOLERANCE = {'float32': 1e-4, 'bfloat16': 4e-2, 'float16': 5e-3}
PASSES = {False: 'forward', True: 'forward+backward'}


@dataclass(frozen=True)
class Neighborhood:
    """A neighborhood attention to be timed."""

    problem: Problem

    title = 'neighborhood_attention'

    @property
    def label(self) -> tuple[str, str]:
        """The map, the window."""
        problem = self.problem
        window = problem.kernel[0], problem.dilation[0]
        return map_label(problem), ', '.join(map(str, window))

    @property
    def steps(self) -> list[Problem]:
        return [self.problem]

    def ways(self, baselines: Sequence[str]) -> list[str]:
        return ['ours', *baselines]

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

    def prepare(self, way: str) -> Attend:
        problem = self.problem
        rotary = rotary_table(problem.height, problem.width, problem.head_dim, problem.device)
        if way == 'ours':
            window = self.local, self.anchor, self.dilation
            return lambda query, key, value, _: sparse_scan_attention(
                query, key, value, *window, rotary=rotary
            )
        steps = [WAYS['ours' if way == TWO_OPS else way](step) for step in self.steps]

        def attend(query: Tensor, key: Tensor, value: Tensor, _: None) -> Tensor:
            query, key = (rotate_pairs(t, *rotary).to(t.dtype) for t in (query, key))
            for step in steps:
                value = step(query, key, value, None)
            return value

        return attend


Case = Neighborhood | SparseScan


def map_label(problem: Problem) -> str:
    batch = f'{problem.batch} x ' if problem.batch > 1 else ''
    return f'{batch}{problem.height} x {problem.width}, {problem.heads}'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument(
        '--shapes',
        nargs='*',
        type=parse_shape,
        default=[parse_shape(shape) for shape in SHAPES],
        metavar='HxW,HEADS,KERNEL,DILATION',
        help=f'of neighborhood_attention, default: {" ".join(SHAPES)}',
    )
    parser.add_argument(
        '--scan-shapes',
        nargs='*',
        type=functools.partial(parse_shape, fields=3),
        default=[parse_shape(shape, 3) for shape in SCAN_SHAPES],
        metavar='HxW,HEADS',
        help='of sparse_scan_attention, with the windows of the adaptive rule, default: '
        f'{" ".join(SCAN_SHAPES)}, the stages of SSViT-S at 800x1336',
    )
    parser.add_argument(
        '--baselines',
        nargs='*',
        choices=[way for way in WAYS if way != 'ours'],
        default=['unfold'],
        help='what to time beside ours, default: unfold; sparse_scan_attention is always timed '
        'beside two separate operators and eager rotary embedding too',
    )
    parser.add_argument('--batch', type=int, nargs='+', default=[1])
    parser.add_argument('--head-dim', type=int, default=32)
    parser.add_argument('--bias', action='store_true', help='with relative position bias')
    parser.add_argument('--dtype', choices=TOLERANCE, default='float32')
    parser.add_argument('--device', type=torch.device, default='cpu', help='cpu, cuda or cuda:N')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--forward-only', action='store_true')
    parser.add_argument('--markdown', action='store_true', help='print a short table, as in README')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    parser.add_argument('--plot', type=Path, help='PNG file to write')
    return parser.parse_args(argv)


def parse_shape(text: str, fields: int = 5) -> tuple[int, ...]:
    """``'100x167,2,7,1'`` to (height, width, heads, kernel, dilation)."""
    try:
        size, *rest = text.split(',')
        numbers = (*map(int, size.split('x')), *map(int, rest))
    except ValueError:
        numbers = ()
    if len(numbers) != fields:
        expected = ','.join(['HxW', 'HEADS', 'KERNEL', 'DILATION'][: fields - 1])
        raise argparse.ArgumentTypeError(f'not {expected}: {text!r}')
    return numbers


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
    return cases


def make_problem(
    args: argparse.Namespace,
    batch: int,
    height: int,
    width: int,
    heads: int,
    kernel: int = 1,
    dilation: int = 1,
    bias: bool = False,
) -> Problem:
    return Problem(
        batch,
        height,
        width,
        heads,
        args.head_dim,
        (kernel, kernel),
        (dilation, dilation),
        getattr(torch, args.dtype),
        args.device,
        bias,
    )


def make_tensors(problem: Problem) -> list[Tensor | None]:
    """Query, key, value, and a bias or None."""
    shapes = [problem.shape] * 3
    if problem.bias:
        shapes.append((problem.heads, *(2 * kernel - 1 for kernel in problem.kernel)))
    options = dict(dtype=problem.dtype, device=problem.device)
    tensors = [torch.randn(shape, **options) for shape in shapes]
    return tensors if problem.bias else [*tensors, None]


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
    tensors = make_tensors(case.problem)
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
    for name, ours, theirs in zip(('output', 'dq', 'dk', 'dv', 'dbias'), actual, expected):
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


def make_runs(case: Case, way: str, tensors: list[Tensor | None]) -> dict[bool, Run]:
    """A forward pass, and a forward and backward pass."""
    attend = case.prepare(way)
    leaves = with_grad(tensors, case.problem.dtype)
    grad = torch.randn_like(tensors[0])
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
    tensors = make_tensors(case.problem)
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
    (product_samples, *samples) = time_in_turns(runs, args.device, args.rounds)
    product_rate = 2 * MATRIX**3 / 1e9 / statistics.median(product_samples)
    timed = [record for record in records if 'skipped' not in record]
    for record, run, seconds in zip(timed, runs[1:], samples):
        median = statistics.median(seconds)
        factor = 3.5 if record['pass'] == PASSES[True] else 1.0
        rate = factor * sum(step.gflop for step in case.steps) / median
        record |= {
            'seconds': median,
            'samples': seconds,
            'gflops': rate,
            'matrix_product_gflops': product_rate,
            'fraction_of_matrix_product': rate / product_rate,
            'peak_bytes': peak_memory(run, args.device),
        }
    return records


def describe(case: Case) -> dict:
    problem = case.problem
    where, window = case.label
    return {
        'op': case.title,
        'map': where,
        'window': window,
        'shape': list(problem.shape),
        'steps': [[list(step.kernel), list(step.dilation)] for step in case.steps],
        'tensor_bytes': 4 * problem.dtype.itemsize * torch.Size(problem.shape).numel(),
    }


def full_table(records: list[dict]) -> None:
    """Every number, one line per way and pass."""
    columns = (
        'map, heads',
        window_title(records),
        'way',
        'pass',
        'ms',
        'GFLOP/s',
        'of matrix product',
        'extra memory (of q, k, v, o)',
    )
    rows = []
    for record in records:
        row = [record['map'], record['window'], record['way'], record['pass']]
        if 'skipped' in record:
            row += ['', '', '', f'skipped: {record["skipped"]}']
        else:
            row += [
                digits(record['seconds'] * 1e3),
                digits(record['gflops']),
                f'{record["fraction_of_matrix_product"]:.2f}',
                memory_text(record),
            ]
        rows.append(row)
    print_table(columns, rows, left=4)


def digits(value: float) -> str:
    """Three of them, or more before the point."""
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'


def memory_text(record: dict) -> str:
    """Peak memory, and that over the size of query, key, value and output."""
    peak = record['peak_bytes']
    return '' if peak is None else f'{peak / 1e6:.1f} MB ({peak / record["tensor_bytes"]:.1f}x)'


def short_table(records: list[dict]) -> None:
    """Our times, rates (fraction of the matrix product), peak memory (over the size of q, k, v, o),
    and how much longer the others take, forward / forward and backward."""
    ways = list(dict.fromkeys(record['way'] for record in records if record['way'] != 'ours'))
    columns = ('map, heads', window_title(records), *PASSES.values(), 'extra memory', *ways)
    rows = []
    for key, group in grouped(records).items():
        ours = [group['ours', name] for name in PASSES.values() if ('ours', name) in group]
        row = [*key]
        row += [
            f'{digits(r["seconds"] * 1e3)} ms, {digits(r["gflops"])} GFLOP/s '
            f'({r["fraction_of_matrix_product"]:.2f})'
            for r in ours
        ]
        row += [''] * (4 - len(row))
        row.append(memory_text(ours[0]))
        for way in ways:
            others = [group[way, record['pass']] for record in ours]
            ratios = [
                f'{digits(other["seconds"] / record["seconds"])}x' if 'seconds' in other else '-'
                for other, record in zip(others, ours)
            ]
            row.append(' / '.join(ratios))
        rows.append(row)
    print_table(columns, rows)


def window_title(records: list[dict]) -> str:
    scan = records[0]['op'] == SparseScan.title
    return 'window, anchors, dilation' if scan else 'kernel, dilation'


def grouped(records: list[dict]) -> dict[tuple[str, str], dict[tuple[str, str], dict]]:
    """(map, window) -> (way, pass) -> record."""
    groups: dict = {}
    for record in records:
        group = groups.setdefault((record['map'], record['window']), {})
        group[record['way'], record['pass']] = record
    return groups


def draw(records: list[dict], path: Path) -> None:
    """Bars of GFLOP/s: a row per operator, a column per pass, a colour per way."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    ops = list(dict.fromkeys(record['op'] for record in records))
    passes = list(dict.fromkeys(record['pass'] for record in records))
    size = (7 * len(passes), 4 * len(ops))
    figure, grid = plt.subplots(
        len(ops), len(passes), figsize=size, squeeze=False, constrained_layout=True
    )
    ways = dict.fromkeys(record['way'] for record in records if 'gflops' in record)
    colors = {way: f'C{index}' for index, way in enumerate(ways)}
    for op, line in zip(ops, grid):
        for name, axes in zip(passes, line):
            timed = [r for r in records if (r['op'], r['pass']) == (op, name) and 'gflops' in r]
            draw_bars(axes, timed, colors)
            axes.set(title=f'{op}, {name}', ylabel='useful GFLOP/s', yscale='log')
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(path)


def draw_bars(axes: object, records: list[dict], colors: dict[str, str]) -> None:
    groups = list(dict.fromkeys((record['map'], record['window']) for record in records))
    ways = list(dict.fromkeys(record['way'] for record in records))
    for offset, way in enumerate(ways):
        bars = [record for record in records if record['way'] == way]
        places = [
            groups.index((r['map'], r['window'])) + 0.8 * (offset + 0.5) / len(ways) for r in bars
        ]
        rates = [record['gflops'] for record in bars]
        axes.bar(places, rates, 0.8 / len(ways), label=way, color=colors[way])
    product = statistics.median(record['matrix_product_gflops'] for record in records)
    axes.axhline(product, color='grey', linestyle='--', label='matrix product')
    axes.set_xticks([index + 0.4 for index in range(len(groups))])
    axes.set_xticklabels(['\n'.join(group) for group in groups], fontsize='small')
    axes.legend(fontsize='small')


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    reasons = check_all(args)
    options = dict(dtype=getattr(torch, args.dtype), device=args.device)
    left, right = torch.randn(2, MATRIX, MATRIX, **options)
    records = []
    for case in make_cases(args):
        print(f'timing {case.title}, {", ".join(case.label)}', flush=True)
        records += measure(case, args, reasons, functools.partial(torch.mm, left, right))
    setting = environment(args.device)
    for op in dict.fromkeys(record['op'] for record in records):
        chosen = [record for record in records if record['op'] == op]
        products = [r['matrix_product_gflops'] for r in chosen if 'seconds' in r]
        print(
            f'\n{op}: {args.dtype}, head_dim {args.head_dim}, {setting["device"]}, '
            f'{setting["threads"]} threads; matrix product {MATRIX}^3: '
            f'{statistics.median(products):.0f} GFLOP/s'
            + ('' if op in setting['compiled_kernels'] else '; NO COMPILED KERNEL, the reference')
        )
        (short_table if args.markdown else full_table)(chosen)
    if args.out:
        arguments = {key: str(value) for key, value in vars(args).items()}
        write_json(args.out, setting | {'arguments': arguments, 'results': records})
    if args.plot:
        draw(records, args.plot)


if __name__ == '__main__':
    main()
