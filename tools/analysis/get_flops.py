"""Print the multiply-adds and parameters of the models of configs.

They are counted for one image at test time, without computing anything: see
mmlocalattn/adapt/complexity.py.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import add_config_arguments, add_size_arguments, one_line_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add_config_arguments(parser, many=True)
    add_size_arguments(
        parser,
        help='of the image; default 800x1280 for mmdet, 512x2048 for mmseg, 224x224 for mmpretrain',
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object per config')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from mmengine.logging import MMLogger

    from mmlocalattn.adapt.complexity import model_complexity
    from mmlocalattn.training import config_of

    MMLogger.get_current_instance().setLevel('ERROR')  # its stream is the same
    for path in args.configs:
        with one_line_errors():
            with contextlib.redirect_stdout(sys.stderr):  # what --backbone has changed
                cfg = config_of(args, path)
            found = model_complexity(cfg, args.size)
        name = Path(path).stem
        if args.json:
            print(json.dumps(dict(config=name) | found._asdict()))
        else:
            height, width = found.shape
            print(
                f'{name}: {found.flops / 1e9:.1f} G multiply-adds, '
                f'{found.params / 1e6:.2f} M parameters at {height} x {width}'
            )
            if found.not_counted:
                print(f'  not counted: {", ".join(found.not_counted)}')


if __name__ == '__main__':
    main()
