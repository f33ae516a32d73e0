"""Train a tiny detector for thousands of iterations, and look at its memory and its losses.

    python tools/dev/long_runs.py 2000 [--out FILE.json]
    python tools/dev/long_runs.py 1000 --amp

Batches of two pictures of 32 to 64 pixels a side; on two cores that is a minute or two. Exit status
1 if, after the first fifth, the memory of the process grows by more than 1 %, or a loss, a gradient
or a weight is not finite.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import output_file, positive
from mmlocalattn.files import write_json

ALLOWED = 0.01
"""Growth of the memory, as a share of it."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('iterations', nargs='?', type=positive, default=2000, help='default: 2000')
    parser.add_argument('--amp', action='store_true', help='mixed precision; on a CPU bfloat16')
    parser.add_argument('--out', type=output_file, help='JSON file to write')
    args = parser.parse_args(argv)
    if args.iterations < 100:
        parser.error(f'{args.iterations} iterations tell nothing: give at least 100')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    out = args.out and args.out.absolute()
    sys.path.insert(0, str(Path(__file__).parent))
    from long_running import sampling

    with tempfile.TemporaryDirectory(prefix='long_runs_') as name:
        record = sampling.train(Path(name), args.iterations, *['--amp'] * args.amp)
    if out:
        write_json(out, record)
    memory, losses = record['memory'], record['losses']
    print(
        f'{args.iterations} iterations in {record["seconds"]} s, '
        f'{"mixed precision" if args.amp else "float32"}: {memory[-1]:.1f} MiB at the end, '
        f'grown by {record["growth"]:.2%}; loss from {losses[0]:.4f} to {losses[-1]:.4f}'
    )
    sys.exit(0 if record['growth'] <= ALLOWED else 1)


if __name__ == '__main__':
    main()
