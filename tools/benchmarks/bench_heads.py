"""Train a detector of each family of heads on the digit cards, export it and collect certificates.

Every step is a command of the project (tools/train.py, export.py, test.py, examples/cpp), run as
users do. What is done is in the JSON file and is not done again: an interrupted run goes on, and
formats that were refused are tried again.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import one_line_errors, output_file, output_folder, positive


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument(
        '--families', nargs='+', metavar='NAME', help="as 'Mask R-CNN' and DINO; default all"
    )
    parser.add_argument('--work-dir', type=output_folder, default=Path('work_dirs/heads'))
    parser.add_argument(
        '--detect',
        type=Path,
        metavar='PROGRAM',
        help='of examples/cpp, for the TorchScript files; without it these run in Python alone',
    )
    parser.add_argument('--threads', type=positive, default=1)
    parser.add_argument('--out', type=output_file, help='JSON file, default in --work-dir')
    parser.add_argument('--table', action='store_true', help='print what there is, do nothing')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    os.environ['OMP_NUM_THREADS'] = '1'  # of this process: copies of one that has more hang
    from benchmarking.heads import FAMILIES
    from benchmarking.heads_run import print_table, run_family
    from benchmarking.tool_runs import Records

    names = args.families or list(FAMILIES)
    with one_line_errors():
        unknown = [name for name in names if name not in FAMILIES]
        if unknown:
            raise ValueError(f'--families {unknown[0]!r}: there are {", ".join(FAMILIES)}')
        records, failed = Records(args.out or args.work_dir / 'heads.json'), []
        if not args.table:
            failed = [name for name in names if not run_family(name, records, args)]
    print_table(records)
    if failed:
        raise SystemExit(f'error: not trained: {", ".join(failed)}')


if __name__ == '__main__':
    main()
