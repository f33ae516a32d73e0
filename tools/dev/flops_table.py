"""Count the models in the tables of docs/flops.md again and write what has changed.

A row starts with the name of a config and changes to it, the size of the image, and what the paper
says of multiply-adds (in 1e9) and parameters (in 1e6), or a -; the other cells are filled in:
| `config` `key=value` | 800 x 1280 | published | counted | difference | published | counted |
"""

import argparse
import ast
import re
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.files import whole_file

ROOT = Path(__file__).parents[2]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('file', nargs='?', type=Path, default=ROOT / 'docs' / 'flops.md')
    parser.add_argument('--only', default='', help='rows whose config has this in its name')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from mmengine.logging import MMLogger

    MMLogger.get_current_instance().setLevel('ERROR')
    with whole_file(args.file) as partial:
        lines = args.file.read_text().splitlines(keepends=True)
        partial.write_text(''.join(fill(line, args.only) for line in lines))


def fill(line: str, only: str = '') -> str:
    """The line with the counts of its model, or as it is when it is no row of such a config."""
    from mmlocalattn.adapt.complexity import model_complexity
    from mmlocalattn.training import load_config

    if not line.startswith('| `'):
        return line
    model, image, flops, _, _, params, _ = (cell.strip() for cell in line.split('|')[1:-1])
    name, *options = re.findall('`(.+?)`', model)
    if only not in name:
        return line
    changes = {key: ast.literal_eval(value) for key, value in (o.split('=') for o in options)}
    height, width = map(int, image.split(' x '))
    cfg = load_config(str(ROOT / 'configs' / f'{name}.py'), changes)
    found = model_complexity(cfg, (height, width))
    counted = found.flops / 1e9
    difference = '-'
    if flops != '-':
        difference = f'{round(counted / float(flops) - 1, 3) + 0.0:+.1%}'  # no minus before a zero
    cells = (model, image, flops, like(flops, counted), difference)
    return f'| {" | ".join((*cells, params, like(params, found.params / 1e6)))} |\n'


def like(published: str, value: float) -> str:
    """The value with one digit more than the published one; with one where there is none."""
    return f'{value:.{len(published.partition(".")[2]) + 1}f}'


if __name__ == '__main__':
    main()
