"""Report on a quickstart run: draw its training curves, put pictures on a sheet, print its scores.

Writes ``WORK_DIR/curves.png`` and ``WORK_DIR/pictures.png``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import one_line_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('work_dir', type=Path, help='the work_dir of the run')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from mmlocalattn.visualisation.report import write_report

    with one_line_errors():
        print(*write_report(args.work_dir), sep='\n')


if __name__ == '__main__':
    main()
