"""Make ``digit_cards``: real handwriting on real photographs, for detection and segmentation.

Nothing is downloaded, and the same arguments give the same bytes. What the folder holds stands in
mmlocalattn/data/digit_cards.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import one_line_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Make handwritten digit cards on photographs: COCO annotations and index maps.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--out', type=Path, default=Path('data/digit_cards'), help='folder to make')
    parser.add_argument('--num-train', type=int, default=800, help='training images')
    parser.add_argument('--num-val', type=int, default=150, help='validation images')
    parser.add_argument('--size', type=int, default=160, help='side of an image, pixels')
    parser.add_argument('--digits', type=int, nargs='+', default=[0, 1, 2, 3], help='to draw')
    parser.add_argument('--seed', type=int, default=0, help='same seed, same bytes')
    parser.add_argument('--force', action='store_true', help='replace the folder if it exists')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from mmlocalattn.data.digit_cards import write_digit_cards

    with one_line_errors():
        write_digit_cards(
            args.out, args.num_train, args.num_val, args.size, args.digits, args.seed, args.force
        )
    print(f'{args.out}: {args.num_train} training and {args.num_val} validation images')


if __name__ == '__main__':
    main()
