"""Sum up training runs and draw their curves beside each other.

    python tools/analysis/analyze_logs.py work_dirs/RUN [...] [--keys loss coco/bbox_mAP]

A run is its work dir, with all of its starts, or one scalars.json. Nothing needs to be known of the
task; the scripts of the same name in mmdet and mmsegmentation need seaborn, and read one start.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import one_line_errors, output_path
from mmlocalattn.files import check_file


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('runs', nargs='+', type=Path, help='work dirs, or scalars.json files')
    parser.add_argument(
        '--keys',
        nargs='+',
        help="to draw; default the loss and the first metric of the first run's validation",
    )
    parser.add_argument(
        '--out', type=output_path, default=Path('curves.png'), help='picture to write'
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from mmlocalattn.training import read_history
    from mmlocalattn.visualisation.curves import compare_runs, draw_curves, summarise_run

    with one_line_errors():
        check_file(args.out)
        histories = {str(run): read_history(run) for run in args.runs}
        for name, history in histories.items():
            print(name, *summarise_run(history), sep='\n  ')
        first = next(iter(histories.values()))
        keys = args.keys or ['loss', *first.metrics()[:1]]
        draw_curves(compare_runs(histories, keys), args.out)
    print(args.out)


if __name__ == '__main__':
    main()
