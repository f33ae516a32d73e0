"""Try the newest releases of everything that is pinned, and say what breaks.

    python tools/dev/try_newest.py FOLDER [--row onedl] [--tests tests/test_ops]

FOLDER gets a virtual environment in which the packages of a row are installed without their
versions: first what PyPI has, torch among it, then the mm packages, which are built against that.
Then everything is imported, the kernels are compiled, in place of those of this clone, and tests
are run. A step that fails is said, with its last lines, and the next one is tried all the same.
Exit status 1 if one failed.
"""

import argparse
import re
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmlocalattn.command_line import output_folder
from mmlocalattn.tables import markdown_table

ROOT = Path(__file__).parents[2]
PINS = {'upstream': 'reference.txt', 'onedl': 'onedl_reference.txt'}
PIN = re.compile(r'^([\w.-]+)={2,3}(\S+)', re.MULTILINE)
MM = re.compile(r'(onedl-)?mm\w+|natten')
TESTS = ('tests/test_ops', 'tests/test_layers', 'tests/test_backbones', 'tests/test_training')
MODULES = ('torch', 'torchvision', 'mmcv._ext', 'mmdet', 'mmseg', 'mmpretrain')
LINES = 15  # of what a step that fails has printed


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=output_folder, help='for the virtual environment')
    parser.add_argument('--row', choices=PINS, default='upstream', help='default: upstream')
    parser.add_argument('--tests', nargs='*', default=TESTS, metavar='PATH', help='for pytest')
    return parser.parse_args(argv)


def pins_of(row: str) -> dict[str, str]:
    """Versions by the names of packages."""
    return dict(PIN.findall((ROOT / 'requirements' / PINS[row]).read_text()))


def steps(python: Path, names: Sequence[str], tests: Sequence[str]) -> Iterator[tuple[str, list]]:
    """What is done, and the command that does it.

    Args:
        python: Of the virtual environment.
        names: Of the packages.
        tests: For pytest.
    """
    install = [python, '-m', 'pip', 'install', '--upgrade', '--progress-bar', 'off']
    ours = [name for name in names if MM.fullmatch(name)]
    yield (
        'install what PyPI has',
        [*install, 'pip', *(name for name in names if name not in ours), 'pytest'],
    )
    for name in ours:
        yield f'install {name}', [*install, '--no-build-isolation', name]
    for module in MODULES:
        yield f'import {module}', [python, '-c', f'import {module}']
    yield 'compile the kernels', [python, 'setup.py', 'build_ext', '--inplace']
    yield 'tests', [python, '-m', 'pytest', '-q', '--no-header', *tests]


def newest(python: Path) -> dict[str, str]:
    """Versions of what is installed, by names in lower case."""
    run = subprocess.run([python, '-m', 'pip', 'freeze', '--all'], capture_output=True, text=True)
    return {name.lower(): version for name, version in PIN.findall(run.stdout)}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    pins = pins_of(args.row)
    venv.create(args.folder, with_pip=True)
    python = args.folder.absolute() / 'bin' / 'python'
    broken = []
    for name, command in steps(python, list(pins), args.tests):
        print(f'{name} ...', flush=True)
        run = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if run.returncode:
            broken.append(name)
            print(f'{name} BREAKS', *run.stdout.splitlines()[-LINES:], sep='\n  ', flush=True)
    there = newest(python)
    rows = [
        [name, version, there.get(name.lower(), 'not installed')]
        for name, version in pins.items()
        if there.get(name.lower()) != version
    ]
    print(markdown_table(('package', 'pinned', 'newest that installs'), rows, left=3))
    print(f'breaks: {", ".join(broken)}' if broken else 'nothing breaks')
    sys.exit(bool(broken))


if __name__ == '__main__':
    main()
