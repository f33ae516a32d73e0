"""Time two built checkouts in turns: every operator, a model. Exit status 1 if NEW is slower.

Each side computes in a process of its own, one at a time. Every round times both, in the order old,
new, new, old, ..., so that a slow moment of the machine hits both. Before, the results of both are
compared. What looks slower is timed again, for longer, once all other cases are done.

The cases are those of build_worker.py. The first is a matrix product that does not depend on
mmlocalattn: its ratio shows what the machine does to all of them.
"""

import argparse
import functools
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

WORKER = Path(__file__).with_name('build_worker.py')
BUILD = 'bash tools/setup_env.sh'
LEAST_ROUNDS = 3
KEPT_PAGES = {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': str(1 << 40)}
"""For glibc: whether freed pages are given back, and faulted in anew, changes from run to run."""
CONTROL, MODEL = 'control', 'model'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('old', type=Path, help='checkout with a built extension')
    parser.add_argument('new', type=Path, help='the same, compared with it')
    parser.add_argument(
        '--isa',
        nargs='+',
        help='values of MMLOCALATTN_CPU_ISA; default: every one that both builds have here',
    )
    parser.add_argument('--threads', type=positive, help="of each side, default: PyTorch's")
    parser.add_argument('--rounds', type=positive, default=8, help='at most, default: %(default)s')
    parser.add_argument(
        '--seconds-per-case',
        type=functools.partial(positive, kind=float),
        default=2.0,
        help='for each side; a slow case gets fewer rounds, but at least '
        f'{LEAST_ROUNDS}; default: %(default)s',
    )
    parser.add_argument(
        '--limit', type=float, default=1.03, help='of NEW / OLD, default: %(default)s'
    )
    parser.add_argument(
        '--confirm',
        type=int,
        default=3,
        metavar='TIMES',
        help='time what is above the limit again, for so many times as long, before believing it; '
        '0 to believe it at once; default: %(default)s',
    )
    parser.add_argument('--filter', type=pattern, default='', help='regex of names of cases')
    parser.add_argument('--no-model', action='store_true', help='operators only')
    parser.add_argument('--json', type=Path, metavar='FILE', help='to write')
    return parser.parse_args(argv)


def pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f'{text!r} is no regular expression: {error}') from None
    return text


def positive(text: str, kind: type = int) -> float:
    try:
        number = kind(text)
    except ValueError:
        number = 0
    if not number > 0:
        raise argparse.ArgumentTypeError(f'{text!r} is no positive number')
    return number


def check_checkout(folder: Path) -> None:
    """Say what is wrong with a folder in one line."""
    if not (folder / 'mmlocalattn' / '__init__.py').is_file():
        raise SystemExit(
            f'error: {folder} is no checkout of mmlocalattn: name a folder that holds mmlocalattn/'
        )
    if not any((folder / 'mmlocalattn').glob('_ext*.so')):
        raise SystemExit(
            f'error: {folder} has no built extension mmlocalattn/_ext*.so: run `{BUILD}` there'
        )


class Side:
    """A process that computes with one checkout."""

    def __init__(self, folder: Path, isa: str | None, threads: int | None, log: Path) -> None:
        self.folder, self.log = folder, log
        env = os.environ | KEPT_PAGES | {'PYTHONPATH': str(folder.resolve())}
        env.pop('MMLOCALATTN_CPU_ISA', None)
        if isa is not None:
            env['MMLOCALATTN_CPU_ISA'] = isa
        command = [sys.executable, str(WORKER)]
        if threads is not None:
            command += ['--threads', str(threads)]
        with log.open('w') as stderr:
            self.process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def ask(self, method: str, **arguments: object) -> Any:
        """The result of a method of the worker's side; one line of error if there is none."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps([method, arguments]), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ''
        if not line:
            said = self.log.read_text().strip().splitlines() or ['it said nothing']
            raise SystemExit(f'error: the process of {self.folder} ended: {said[-1]}')
        answer = json.loads(line)
        if 'failure' in answer:
            about = f' ({arguments["name"]})' if 'name' in arguments else ''
            raise SystemExit(f'error: {self.folder}{about}: {answer["failure"]}')
        return answer['result']

    def close(self) -> None:
        self.process.kill()  # between two requests it has nothing to lose
        self.process.communicate()


@contextmanager
def open_sides(args: argparse.Namespace, isa: str | None, scratch: Path) -> Iterator[list[Side]]:
    sides: list[Side] = []
    try:
        for name in ('old', 'new'):
            folder, log = getattr(args, name), scratch / f'{name}.log'
            sides.append(Side(folder, isa, args.threads, log))
        yield sides
    finally:
        for side in sides:
            side.close()


def describe(side: Side) -> dict:
    description = side.ask('describe')
    expected = side.folder.resolve() / 'mmlocalattn'
    if Path(description['package']).resolve() != expected:
        raise SystemExit(f'error: {description["package"]} was imported instead of {expected}')
    return description


def instruction_sets(args: argparse.Namespace, scratch: Path) -> list[str]:
    """What both builds have on this machine."""
    with open_sides(args, None, scratch) as sides:
        for side in sides:
            describe(side)
        old, new = (side.ask('instruction_sets') for side in sides)
    for name in {*old} ^ {*new}:
        print(f'{name} is left out: only one of the builds has it', file=sys.stderr)
    return [name for name in old if name in new]


def plan(seconds: float, budget: float, rounds: int) -> tuple[int, int]:
    """Rounds, and calls in each, of a call that takes so long."""
    rounds = max(min(rounds, int(budget / seconds)), min(rounds, LEAST_ROUNDS))
    return rounds, max(1, int(budget / rounds / seconds))


def time_in_turns(sides: Sequence[Side], rounds: int, calls: int) -> list[list[list[float]]]:
    """Seconds by side, round and call."""
    samples: list[list[list[float]]] = [[], []]
    for index in range(rounds):
        for side in (0, 1) if index % 2 == 0 else (1, 0):
            samples[side].append(sides[side].ask('time', calls=calls))
    return samples


def measure(
    sides: Sequence[Side], name: str, budget: float, rounds: int, limit: float, scratch: Path
) -> dict:
    """Compare the results of a case, then time it."""
    old, new = sides
    file = str(scratch / 'result.pt')
    first = old.ask('prepare', name=name, save=file)
    second = new.ask('prepare', name=name, expected=file)
    if not second['error'] <= second['tolerance']:
        raise SystemExit(
            f'error: {new.folder} disagrees with {old.folder} on {name}: off by '
            f'{second["error"]:.1e} of the largest value, {second["tolerance"]:.0e} is rounding'
        )
    rounds, calls = plan(max(first['seconds'], second['seconds']), budget, rounds)
    samples = time_in_turns(sides, rounds, calls)
    times = summary(samples[0], samples[1], limit)
    return {'name': name, 'error': second['error'], 'calls': calls} | times


def summary(old: list[list[float]], new: list[list[float]], limit: float) -> dict:
    """Times and ratios from the seconds of every round and call.

    A case looks slower if most ratios are above the limit, and is slower if all are: a disturbance
    lifts the medians but seldom the minima.
    """
    old_rounds, new_rounds = ([median(calls) for calls in side] for side in (old, new))
    old_least, new_least = (min(map(min, side)) for side in (old, new))
    ratios = {
        'ratio': median(b / a for a, b in zip(old_rounds, new_rounds)),  # of pairs
        'ratio_of_medians': median(new_rounds) / median(old_rounds),
        'ratio_of_minima': new_least / old_least,
    }
    return {
        'old_seconds': median(old_rounds),
        'new_seconds': median(new_rounds),
        **ratios,
        'looks_slower': median(ratios.values()) > limit,
        'slower': min(ratios.values()) > limit,
        'old_rounds': old_rounds,
        'new_rounds': new_rounds,
    }


def compare(args: argparse.Namespace, isa: str, scratch: Path) -> dict:
    """All cases with one instruction set."""
    with open_sides(args, isa, scratch) as sides:
        description, other = (describe(side) for side in sides)
        if description['threads'] != other['threads'] or description['torch'] != other['torch']:
            raise SystemExit('error: the sides do not have the same torch and threads')
        names = choose_cases(args, description['cases'])
        run = (args.seconds_per_case, args.rounds, args.limit, scratch)
        cases = {}
        for index, name in enumerate(names):
            cases[name] = measure(sides, name, *run)
            say(f'{isa} {index + 1}/{len(names)}', cases[name])
        control = cases.pop(names[0])
        longer = (args.confirm * args.seconds_per_case, args.confirm * args.rounds, *run[2:])
        for name, first in cases.items():
            if args.confirm and first['looks_slower']:
                cases[name] = measure(sides, name, *longer) | {'first': first}
                say(f'{isa} again', cases[name])
    product_seconds = median([control['old_seconds'], control['new_seconds']])
    return {
        'isa': isa,
        'threads': description['threads'],
        'torch': description['torch'],
        'versions': [description['version'], other['version']],
        'sgemm_gflops': description['matrix_gflop'] / product_seconds,
        'control': control,
        'cases': list(cases.values()),
    }


def choose_cases(args: argparse.Namespace, kinds: dict[str, str]) -> list[str]:
    """The control first, then what the arguments choose."""
    chosen = [
        name
        for name, kind in kinds.items()
        if kind != CONTROL
        and not (args.no_model and kind == MODEL)
        and re.search(args.filter, name)
    ]
    if not chosen:
        example = next(name for name, kind in kinds.items() if kind != CONTROL)
        raise SystemExit(f'error: --filter matches no case; one of the names is: {example}')
    return [name for name, kind in kinds.items() if kind == CONTROL] + chosen


def say(where: str, case: dict) -> None:
    print(f'[{where}] {case["name"]}: {case["ratio"]:.3f}', file=sys.stderr, flush=True)


def print_run(run: dict, machine: str) -> None:
    """The table of one instruction set, aligned text and Markdown at once."""
    print(
        f'\n{run["isa"]}, {run["threads"]} threads, {machine}; matrix product: '
        f'{run["sgemm_gflops"]:.0f} GFLOP/s, NEW / OLD {run["control"]["ratio"]:.3f}\n'
    )
    header = ('case', 'old ms', 'new ms', 'new / old', 'of minima', 'error', '')
    rows = [header, *(row(case) for case in run['cases'])]
    widths = [max(map(len, cells)) for cells in zip(*rows)]
    rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:-1]), '-' * widths[-1]]
    for cells in (rows[0], rule, *rows[1:]):
        ends = cells[0].ljust(widths[0]), cells[-1].ljust(widths[-1])
        numbers = (text.rjust(width) for text, width in zip(cells[1:-1], widths[1:-1]))
        print(f'| {" | ".join((ends[0], *numbers, ends[1]))} |')
    mean = geometric_mean(case['ratio'] for case in run['cases'])
    print(f'\ngeometric mean of new / old: {mean:.3f}')


def row(case: dict) -> tuple[str, ...]:
    mark = f'at first {case["first"]["ratio"]:.3f}' if 'first' in case else ''
    if case['slower']:
        mark = f'SLOWER {mark}'.rstrip()
    times = (f'{digits(case[f"{side}_seconds"] * 1e3)}' for side in ('old', 'new'))
    ratios = (f'{case[key]:.3f}' for key in ('ratio', 'ratio_of_minima'))
    return case['name'], *times, *ratios, f'{case["error"]:.0e}', mark


def digits(value: float) -> str:
    """Four of them, or more before the point."""
    return f'{value:.{max(0, 3 - math.floor(math.log10(value)))}f}'


def cpu_name() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    text = cpuinfo.read_text() if cpuinfo.exists() else ''
    model = re.search(r'^model name\s*:\s*(.+)$', text, re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def write_json(path: Path, record: dict) -> None:
    """Write a file that is either whole or not there."""
    partial = path.with_name(f'.{path.name}.partial')
    partial.write_text(json.dumps(record, indent=1))
    os.replace(partial, path)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    for folder in (args.old, args.new):
        check_checkout(folder)
    if args.json and not args.json.absolute().parent.is_dir():
        raise SystemExit(f'error: there is no folder for {args.json}: make it first')
    machine, load, cores, runs = cpu_name(), os.getloadavg()[0], os.cpu_count() or 1, []
    if load > cores / 2:
        print(
            f'the machine is busy (load {load:.1f}, {cores} cores): threads that wait for '
            'each other hide what short calls take, --threads 1 shows more',
            file=sys.stderr,
        )
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for isa in args.isa or instruction_sets(args, scratch):
            runs.append(compare(args, isa, scratch))
            print_run(runs[-1], machine)
    slower = [
        f'{run["isa"]} {case["name"]}' for run in runs for case in run['cases'] if case['slower']
    ]
    if args.json:
        arguments = {key: str(value) for key, value in vars(args).items()}
        record = {'cpu': machine, 'load': load, 'arguments': arguments}
        write_json(args.json, record | {'slower': slower, 'runs': runs})
    if slower:
        print(f'\n{len(slower)} slower than {args.limit} times:', *slower, sep='\n  ')
    return int(bool(slower))


if __name__ == '__main__':
    sys.exit(main())
