"""Time and memory of local attention against the size of its window.

All ways get the map of one stage. Everything about one window is timed in turns in one process; the
table shows medians, and peak memory on top of inputs. Before, every way is compared with its
definition on a small map.
"""

import argparse
from collections.abc import Sequence

from benchmarking.choices import DTYPES, WINDOW_BASELINES

from mmlocalattn.command_line import one_line_errors, output_path, positive


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--height', type=positive, default=200)
    parser.add_argument('--width', type=positive, default=334)
    parser.add_argument('--heads', type=positive, default=8)
    parser.add_argument('--head-dim', type=positive, default=8)
    parser.add_argument('--queries', type=positive, default=2, help='learned queries of QnA')
    parser.add_argument('--windows', type=odd, nargs='+', default=[3, 5, 7, 9, 11, 13])
    parser.add_argument(
        '--ways',
        nargs='*',
        choices=WINDOW_BASELINES,
        default=WINDOW_BASELINES,
        metavar='WAY',
        help='what to time beside query_and_attend, nothing without a value; default: all of '
        + ', '.join(map(repr, WINDOW_BASELINES)),
    )
    parser.add_argument('--dtype', choices=DTYPES, default='float32')
    parser.add_argument('--device', default='cpu', help='cpu, cuda or cuda:N')
    parser.add_argument('--rounds', type=positive, default=5)
    parser.add_argument('--forward-only', action='store_true')
    parser.add_argument('--out', type=output_path, help='JSON file to write')
    parser.add_argument('--plot', type=output_path, help='PNG file to write')
    return parser.parse_args(argv)


def odd(text: str) -> int:
    """The side of a window."""
    side = positive(text)
    if side % 2 == 0:
        raise argparse.ArgumentTypeError(f'windows have a middle: {text!r} is even')
    return side


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from benchmarking.timing import environment, write_results
    from benchmarking.windows import OURS, WAYS, check_all, draw, make_setting, measure, table

    from mmlocalattn.device import usable_device

    args.ways = [way for way in WAYS if way == OURS or way in args.ways]
    with one_line_errors():
        args.device = usable_device(args.device)
    check_all(args)
    records = []
    for window in args.windows:
        print(f'timing windows of {window} x {window}', flush=True)
        records += measure(make_setting(args, window), args)
    setting = environment(args.device)
    print(
        f'\n{args.height} x {args.width}, {args.heads} heads of {args.head_dim} channels, '
        f'{args.queries} learned queries, {args.dtype}, {setting["device"]}, '
        f'{setting["threads"]} threads'
    )
    for title in dict.fromkeys(record['pass'] for record in records):
        table(records, title)
    write_results(args, setting, records)
    if args.plot:
        draw(records, args.plot)


if __name__ == '__main__':
    main()
