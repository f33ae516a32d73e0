"""Convert an official checkpoint to ours.

Every name and shape is checked against the model first; nothing is written unless all of them
match. What the result is for: docs/weights.md.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import one_line_errors, output_file
from mmlocalattn.converters import families

USAGE = """%(prog)s [--arch ARCH | --config CONFIG] FAMILY SRC DST
       %(prog)s --released NAME [--from FILE] [DST]
       %(prog)s --list"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(usage=USAGE, description=__doc__.partition('\n')[0])
    parser.add_argument(
        'names',
        nargs='*',
        metavar='FAMILY SRC DST',
        help=f'which official release ({", ".join(families.NAMES)}), the official checkpoint, and '
        'the checkpoint to write; after --released only the last one, if any',
    )
    parser.add_argument(
        '--released',
        metavar='NAME',
        help='of a released file: download it once to where init_cfg finds it, convert it and '
        'write DST, if that is given',
    )
    parser.add_argument(
        '--from',
        dest='file',
        metavar='FILE',
        type=Path,
        help='with --released: the released file, downloaded by a person; without DST it is copied '
        'to where init_cfg finds it',
    )
    parser.add_argument('--list', action='store_true', help='list the released files')
    parser.add_argument(
        '--arch',
        help='of a classifier: name of an architecture or its dict as JSON; default: the one whose '
        'shapes match',
    )
    parser.add_argument(
        '--config',
        help='of a detector or segmentor: configuration with the model; default: ours of the '
        'published one',
    )
    args = parser.parse_args(argv)
    _check(parser, args)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Divide the names into ``family``, ``src`` and ``dst``; None for what is not given."""
    args.family = args.src = args.dst = None
    if args.list:
        if args.names or args.released:
            parser.error('--list takes nothing else')
        return
    if args.released is None:
        if args.file is not None:
            parser.error('--from needs --released')
        if len(args.names) != 3:
            parser.error('FAMILY SRC DST, --released NAME or --list is needed')
        args.family, src, dst = args.names
        args.src = Path(src)
        if args.family not in families.NAMES:
            parser.error(
                f'no family is called {args.family!r}: choose from {", ".join(families.NAMES)}'
            )
    else:
        if args.arch or args.config:
            parser.error('--released knows its --arch or --config')
        if len(args.names) > 1:
            parser.error(f'--released takes DST and nothing else, got {" ".join(args.names)}')
        dst = args.names[0] if args.names else None
    if dst is not None:
        try:
            args.dst = output_file(dst)
        except argparse.ArgumentTypeError as error:
            parser.error(f'argument dst: {error}')


def parse_arch(text: str | None) -> str | dict | None:
    """An architecture's name, or its dict as JSON."""
    if text is None or not text.lstrip().startswith('{'):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'--arch is not valid JSON: {error}') from error


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.list:
        from mmlocalattn.converters.released import released_table

        print(released_table())
        return
    with one_line_errors('Nothing was written.'):
        if args.released is not None:
            from mmlocalattn.converters.by_name import keep_released, save_released

            if args.dst is None:
                path, converted = keep_released(args.released, args.file)
            else:
                path, converted = save_released(args.released, args.dst, args.file)
        else:
            from mmlocalattn.converters.convert import convert_checkpoint

            path, arch = args.dst, parse_arch(args.arch)
            converted = convert_checkpoint(args.family, args.src, path, arch, args.config)
    about = ', '.join(f'{key} {value}' for key, value in converted.about.items())
    tensors = f'{len(converted.weights)} tensors in {", ".join(converted.parts)}'
    print(f'{path}: {args.released or args.family}, {about}, {tensors}')
    if args.released is not None and args.dst is None:
        print(f"init_cfg=dict(type='mmlocalattn.Released', name='{args.released}') loads it")


if __name__ == '__main__':
    main()
