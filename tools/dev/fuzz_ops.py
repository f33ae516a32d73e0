"""Call the operators at random, forward and backward, and compare with an oracle in float64.

    python tools/dev/fuzz_ops.py 300 [--seed S]      calls S, S + 1, ...
    python tools/dev/fuzz_ops.py --replay SEED       one call, and what it is
    python tools/dev/fuzz_ops.py --models ...        backbones of any arch instead of operators

The calls run in child processes, so that a crash is counted with its seed, and those of operators
each with one of the instruction sets of the machine (MMLOCALATTN_CPU_ISA for one alone). Backbones
keep their promises or not: maps of the right size, finite, gradients of all parameters, twice the
same. Exit status 1 if there was a crash or a wrong result.
"""

import argparse
import importlib
import json
import os
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from mmlocalattn.command_line import output_file, positive

BLOCK = 50  # calls of one process
SECONDS = 120  # of one call


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('number', nargs='?', type=positive, default=300, help='default: 300')
    parser.add_argument('--seed', type=int, help='of the first call; default a random one')
    parser.add_argument('--replay', type=int, metavar='SEED', help='run one call in this process')
    parser.add_argument('--models', action='store_true', help='backbones instead of operators')
    parser.add_argument('--out', type=output_file, help='JSON file to write')
    return parser.parse_args(argv)


def maker(models: bool) -> ModuleType:
    """The module whose ``problem(seed)`` makes what is tried, and its ``ALLOWED`` error."""
    return importlib.import_module('fuzzing.models' if models else 'fuzzing.problems')


def check(seeds: Sequence[int], models: bool) -> None:
    """In a child: one JSON line before each call, one after it."""
    module = maker(models)
    for seed in seeds:
        print(json.dumps({'seed': seed}), flush=True)
        made = module.problem(seed)
        tensor, error = made.check()
        record = dict(
            seed=seed,
            operator=made.operator,
            text=made.text,
            tensor=tensor,
            error=error,
            wrong=not error <= module.ALLOWED,
        )
        print(json.dumps(record), flush=True)


def run_block(seeds: Sequence[int], models: bool) -> Iterator[dict]:
    """The records of a block; after a crash the rest runs in another process."""
    seeds = list(seeds)
    while seeds:
        command = [sys.executable, __file__, '--seed', str(seeds[0]), str(len(seeds))]
        command += ['--models'] * models
        try:
            run = subprocess.run(
                command,
                env={**os.environ, 'MMLOCALATTN_FUZZ_CHILD': '1'},
                capture_output=True,
                text=True,
                timeout=SECONDS * len(seeds),
            )
            output, reason = run.stdout, f'exit status {run.returncode}: {run.stderr[-2000:]}'
        except subprocess.TimeoutExpired as error:
            output, reason = (error.stdout or b'').decode(), 'it does not end'
        records = [json.loads(line) for line in output.splitlines()]
        done = [record for record in records if 'operator' in record]
        yield from done
        started = [record['seed'] for record in records if 'operator' not in record]
        if len(done) == len(seeds):
            return
        failed = started[-1] if len(started) > len(done) else seeds[0]
        yield {'seed': failed, 'crash': reason}
        seeds = [seed for seed in seeds if seed > failed]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    sys.path.insert(0, str(Path(__file__).parent))
    if args.replay is not None:
        made = maker(args.models).problem(args.replay)
        print(made.text)
        print('{}: {:.3g} units'.format(*made.check()))
        return
    seed = secrets.randbelow(10**9) if args.seed is None else args.seed
    seeds = range(seed, seed + args.number)
    if os.environ.get('MMLOCALATTN_FUZZ_CHILD'):
        check(seeds, args.models)
        return
    from rich.progress import track

    from mmlocalattn.files import write_json

    print(f'{args.number} calls from seed {seed}', flush=True)
    blocks = [seeds[start : start + BLOCK] for start in range(0, len(seeds), BLOCK)]
    records: list[dict] = []
    for block in track(blocks, 'calls', disable=not sys.stderr.isatty()):
        records += run_block(block, args.models)
    crashes = [record for record in records if 'crash' in record]
    wrong = [record for record in records if record.get('wrong')]
    for record in crashes + wrong:
        what = record.get('crash') or '{text}: {tensor}, {error:.3g} units'.format(**record)
        print(f'--replay {record["seed"]}\n    {what}')
    counts = Counter(record['operator'] for record in records if 'operator' in record)
    print(', '.join(f'{name} {count}' for name, count in sorted(counts.items())))
    print(f'{len(records)} calls, {len(crashes)} crashes, {len(wrong)} wrong')
    if args.out:
        write_json(args.out, dict(seed=seed, calls=records))
    if crashes or wrong:
        sys.exit(1)


if __name__ == '__main__':
    main()
