"""Check all files of the data sets of a config, or of a folder of your own.

Of a config: classes, annotations, pictures and index maps, against the model too, where
tools/train.py checks a sample of them in a few seconds. Of a folder, in place of the config or with
``--data`` beside one that is to learn it: what it holds is recognised, counted and drawn on a
contact sheet; nothing is written into it. Each ends with an error if a training would stop or go
wrong. What is found, and what to do: docs/faq.md and docs/your_data.md.
"""

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmlocalattn.command_line import add_config_arguments, one_line_errors

if TYPE_CHECKING:
    from mmlocalattn.data.findings import Finding
    from mmlocalattn.data.folders import FolderData


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
    group = parser.add_argument_group('with a folder in place of CONFIG, or beside it')
    group.add_argument(
        '--data',
        metavar='FOLDER',
        help='check what CONFIG would learn of this folder, and that it can',
    )
    group.add_argument(
        '--val-fraction',
        type=float,
        default=0.2,
        help='share of the pictures for validation if the folder has no split, default 0.2',
    )
    group.add_argument(
        '--out-dir',
        help='for the contact sheet and what is converted; default work_dirs/check_FOLDER',
    )
    args = parser.parse_args(argv)
    if args.number < 0:
        parser.error(f'--number must not be negative, got {args.number}')
    if args.data and os.path.isdir(args.config):
        parser.error(f'{args.config!r} is a folder, as --data is: give a config, or no --data')
    return args


def check_config(args: argparse.Namespace) -> 'list[Finding]':
    from rich.progress import track

    from mmlocalattn.training import config_of
    from mmlocalattn.training.data_check import check_all

    cfg = config_of(args)
    return check_all(cfg, args.splits, lambda items, name: track(items, description=name))


def check_folder(args: argparse.Namespace, folder: str) -> 'list[Finding]':
    from pathlib import Path

    from mmlocalattn.data.folders import count_table
    from mmlocalattn.data.images import write_image
    from mmlocalattn.visualisation.contact_sheet import draw_contact_sheet

    out_dir = args.out_dir or os.path.join('work_dirs', f'check_{os.path.basename(folder)}')
    data = read_data(args, folder, out_dir)
    sheet = Path(out_dir, 'contact_sheet.png')
    write_image(sheet, draw_contact_sheet(data))
    print(
        data.summary, count_table(data), f'pictures with what is drawn on them: {sheet}', sep='\n'
    )
    return list(data.findings)


def read_data(args: argparse.Namespace, folder: str, out_dir: str) -> 'FolderData':
    """What a folder holds, or what the config would learn of it."""
    if not args.data:
        from mmlocalattn.data.folders import read_folder

        return read_folder(folder, os.path.join(out_dir, 'data'), args.val_fraction, skip_bad=True)
    from mmlocalattn.adapt import fit_to_data
    from mmlocalattn.training.arguments import config_of, data_of

    cfg = config_of(argparse.Namespace(**{**vars(args), 'data': None}))
    reading = dict(data=folder, work_dir=out_dir, val_fraction=args.val_fraction, skip_bad=True)
    data = data_of(argparse.Namespace(**reading), cfg)
    fit_to_data(cfg, data)  # says why it cannot
    return data


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from mmlocalattn.data.findings import SEVERITIES, first_of_each_kind

    folder = args.data or (args.config if os.path.isdir(args.config) else None)
    with one_line_errors():
        findings = check_folder(args, os.path.abspath(folder)) if folder else check_config(args)
    for line in first_of_each_kind(findings, args.number or len(findings)):
        print(line)
    numbers = [sum(found.severity == severity for found in findings) for severity in SEVERITIES]
    summary = ', '.join(
        f'{number} {severity}{"" if number == 1 else "s"}'
        for number, severity in zip(numbers, SEVERITIES, strict=True)
    )
    if numbers[0]:
        skip = '; train.py goes on without them with --skip-bad' if folder else ''
        raise SystemExit(f'error: {summary} in the data of {folder or args.config}{skip}')
    print(f'{summary} in the data of {folder or args.config}')


if __name__ == '__main__':
    main()
