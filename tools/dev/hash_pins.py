"""Write requirements/hashes/: the pins of each row, and all they need, with all their SHA-256.

    pip install uv
    python tools/dev/hash_pins.py

The hashes are those of every file that the index has of a release, so that the same list serves
other machines and versions of Python. Nothing is downloaded but the lists of files.
MMLOCALATTN_REQUIRE_HASHES=1 tools/setup_env.sh installs what they say and nothing else.
"""

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmlocalattn.command_line import one_line_errors
from mmlocalattn.files import whole_file

ROOT = Path(__file__).parents[2] / 'requirements'
ROWS = {  # what tools/setup_env.sh installs, and the oldest Python of the row
    'reference': (('reference.txt', 'tests.txt', 'lint.txt'), '3.11'),
    'onedl': (('onedl_reference.txt', 'tests.txt'), '3.11'),
    'classic': (('classic_reference.txt', 'tests.txt'), '3.10'),
}
ALONE = re.compile(r'(onedl-)?mmcv==|natten==')
"""Source distributions whose needs only a Python with torch can tell: they come without."""

RELEASE = re.compile(r'^[^ #]+==', re.MULTILINE)
HEAD = '# Written by tools/dev/hash_pins.py from {}.\n'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser.parse_args(argv)


def pins_of(row: str) -> list[str]:
    """The lines of the files of a row that are pins."""
    lines = (line for name in ROWS[row][0] for line in (ROOT / name).read_text().splitlines())
    bare = (line.partition(' #')[0].partition('#')[0].strip() for line in lines)
    return [line for line in bare if line]


def hashed(pins: Iterable[str], python: str, *options: str) -> str:
    """What uv makes of some pins: they and what they need, with hashes.

    Raises:
        ValueError: If it cannot; says why.
    """
    command = ['uv', 'pip', 'compile', '--quiet', '--universal', '--generate-hashes', *options]
    command += ['--no-annotate', '--no-header', '--python-version', python, '-']
    run = subprocess.run(command, input='\n'.join(pins), capture_output=True, text=True)
    if run.returncode:
        raise ValueError(f'uv says: {" ".join(run.stderr.split())}')
    return run.stdout


def main(argv: Sequence[str] | None = None) -> None:
    parse_args(argv)
    with one_line_errors():
        if shutil.which('uv') is None:
            raise FileNotFoundError('there is no uv: pip install uv')
        for row, (names, python) in ROWS.items():
            pins = pins_of(row)
            alone = [pin for pin in pins if ALONE.match(pin)]
            text = hashed((pin for pin in pins if pin not in alone), python)
            text += hashed(alone, python, '--no-deps')
            with whole_file(ROOT / 'hashes' / f'{row}.txt') as partial:
                partial.write_text(HEAD.format(' and '.join(names)) + text)
            print(f'requirements/hashes/{row}.txt: {len(RELEASE.findall(text))} releases')


if __name__ == '__main__':
    main()
