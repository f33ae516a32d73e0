"""Check all files of the data sets of a config: classes, annotations, pictures, index maps.

tools/train.py checks a sample of them in a few seconds, this all of them, against the model too. It
ends with an error if a training would stop or go wrong. What is found, and what to do:
docs/faq.md.
"""

import argparse
from collections.abc import Sequence

from mmlocalattn.command_line import add_config_arguments, one_line_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add_config_arguments(parser)
    parser.add_argument(
        '--splits',
        nargs='+',
        choices=['train', 'val', 'test'],
        default=['train', 'val', 'test'],
        help='data loaders to check, default all',
    )
    parser.add_argument(
        '--number',
        type=int,
        default=5,
        help='of findings to show of each kind and file, default 5; 0 for all',
    )
    args = parser.parse_args(argv)
    if args.number < 0:
        parser.error(f'--number must not be negative, got {args.number}')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from rich.progress import track

    from mmlocalattn.data.findings import SEVERITIES, first_of_each_kind
    from mmlocalattn.training import config_of
    from mmlocalattn.training.data_check import check_all

    with one_line_errors():
        cfg = config_of(args)
        findings = check_all(cfg, args.splits, lambda items, name: track(items, description=name))
    for line in first_of_each_kind(findings, args.number or len(findings)):
        print(line)
    numbers = [sum(found.severity == severity for found in findings) for severity in SEVERITIES]
    summary = ', '.join(
        f'{number} {severity}{"" if number == 1 else "s"}'
        for number, severity in zip(numbers, SEVERITIES, strict=True)
    )
    if numbers[0]:
        raise SystemExit(f'error: {summary} in the data of {args.config}')
    print(f'{summary} in the data of {args.config}')


if __name__ == '__main__':
    main()
