"""Convert an official checkpoint to ours.

Every name and shape is checked against the model first; nothing is written unless all of them
match. What the result is for: docs/weights.md.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import one_line_errors, output_path
from mmlocalattn.converters import families


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('family', choices=families.NAMES, help='which official release')
    parser.add_argument('src', type=Path, help='official checkpoint')
    parser.add_argument('dst', type=output_path, help='checkpoint to write')
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
    return parser.parse_args(argv)


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
    from mmlocalattn.converters.convert import convert_checkpoint

    with one_line_errors('Nothing was written.'):
        arch = parse_arch(args.arch)
        converted = convert_checkpoint(args.family, args.src, args.dst, arch, args.config)
    about = ', '.join(f'{key} {value}' for key, value in converted.about.items())
    tensors = f'{len(converted.weights)} tensors in {", ".join(converted.parts)}'
    print(f'{args.dst}: {args.family}, {about}, {tensors}')


if __name__ == '__main__':
    main()
