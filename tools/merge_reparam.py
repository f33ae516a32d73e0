"""Fold the two paths of every slide attention of a trained model into one, for inference.

The result loads wherever the given checkpoint does: ``tools/test.py CONFIG DST``. Nothing is
written unless the backbone computes the same from a random image before and after.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import one_line_errors, output_path


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('config', help='config file of the model')
    parser.add_argument('src', type=Path, help='checkpoint with two paths')
    parser.add_argument('dst', type=output_path, help='checkpoint to write')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from mmlocalattn.converters.merge import merge_checkpoint

    with one_line_errors('Nothing was written.'):
        difference = merge_checkpoint(args.config, args.src, args.dst)
    saved = args.src.stat().st_size - args.dst.stat().st_size
    print(f'{args.dst}: {saved / 1e3:.1f} kB smaller, outputs differ by {difference:.1e} at most')


if __name__ == '__main__':
    main()
