"""Train every family, and mmdet's ResNet and Swin of the same size, with one recipe.

The recipe is that of the quickstart, on the digit cards, with several seeds. What is done is in
the JSON file and is not done again: an interrupted run goes on, first with the first seed of all.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import one_line_errors, output_file, output_folder, positive


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument(
        '--backbones', nargs='+', metavar='NAME', help='as SSViT and Slide-Swin; default all'
    )
    parser.add_argument('--seeds', type=positive, default=3, help='default: %(default)s')
    parser.add_argument('--work-dir', type=output_folder, default=Path('work_dirs/accuracy'))
    parser.add_argument('--threads', type=positive, default=1)
    parser.add_argument('--out', type=output_file, help='JSON file, default in --work-dir')
    parser.add_argument('--table', action='store_true', help='print what there is, do nothing')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    os.environ['OMP_NUM_THREADS'] = '1'  # of this process: copies of one that has more hang
    from benchmarking.accuracy import BACKBONES, print_table, run_seed
    from benchmarking.tool_runs import Records

    names = args.backbones or list(BACKBONES)
    with one_line_errors():
        unknown = [name for name in names if name not in BACKBONES]
        if unknown:
            raise ValueError(f'--backbones {unknown[0]!r}: there are {", ".join(BACKBONES)}')
        records, failed = Records(args.out or args.work_dir / 'accuracy.json'), []
        for seed in () if args.table else range(args.seeds):
            failed += [name for name in names if not run_seed(name, seed, records, args)]
    print_table(records)
    if failed:
        raise SystemExit(f'error: not trained: {", ".join(dict.fromkeys(failed))}')


if __name__ == '__main__':
    main()
