"""Install mmcv from its source distribution in a fraction of the usual time.

    python tools/dev/install_mmcv.py mmcv==2.1.0 --wheels FOLDER

mmcv compiles some 77 C++ files and 58 of CUDA, and most of the time goes into PyTorch's headers,
which each file parses anew. Here they are compiled as a few units that include many of them.
Nothing else differs: setup.py, its switches (FORCE_CUDA, MMCV_CUDA_ARGS, MAX_JOBS, ...), the flags
and the operators are mmcv's own. Files that define the same name, themselves or in their headers,
go to different units, and a file's macros end with it. Should the units not compile after all, mmcv
is built file by file, and that is said.

The wheel is kept, by the versions of torch and Python, and is all that the next time needs.
Runs in a Python that has torch and what mmcv's setup.py needs.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

FILES_PER_UNIT = {
    '.cpp': 20,
    '.cu': 8,
}  # CUDA's own part is the longer one, for many cores to share
STEP = re.compile(r'\[(\d+)/(\d+)\] ')
COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/', re.DOTALL)
MACRO = re.compile(r'^[ \t]*#[ \t]*define[ \t]+(\w+)', re.MULTILINE)
DIRECTIVE = re.compile(r'^[ \t]*#(?:[^\n]*\\\n)*[^\n]*', re.MULTILINE)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', re.MULTILINE)
TEMPLATE = re.compile(r'\btemplate\s*<[^{}()]*>')
TYPE = re.compile(r'\b(?:struct|class|enum|union)\s+(\w+)[^()]*$')
NAMELESS = re.compile(r'\bnamespace\s*$')
CONSTANT = re.compile(r'\bconst(?:expr)?\b[^(=]*?(\w+)\s*(?:\[[^\]]*\]\s*)*=')
FUNCTION = re.compile(r'(\w+)\s*\(')


def read(file: Path) -> str:
    """The text of a source file."""
    return file.read_text(encoding='utf-8', errors='replace')


def defined_names(source: str) -> set[str]:
    """The functions, types and constants that a C++ file defines outside of named braces."""
    names = set()
    open_braces: list[bool] = []  # whether of a namespace without a name, as if they were not there
    head = ''
    for char in DIRECTIVE.sub('', COMMENT.sub(' ', source)):
        outside = all(open_braces)
        if char == '{':
            is_nameless = bool(NAMELESS.search(head))
            if outside and not is_nameless:
                plain = TEMPLATE.sub('', head)
                found = TYPE.search(head) or FUNCTION.search(plain) or CONSTANT.search(plain)
                names |= {found[1]} if found else set()
            open_braces.append(is_nameless)
            head = ''
        elif char == '}':
            if open_braces:
                open_braces.pop()
            head = ''
        elif char == ';' and outside:
            names |= {*CONSTANT.findall(head)}
            head = ''
        elif outside:
            head += char
    return names


def with_headers(file: Path, folders: Sequence[Path]) -> list[Path]:
    """A file and what it includes, also indirectly, of its own folder and of ``folders``."""
    found = [file.resolve()]
    for source in found:
        for name in INCLUDE.findall(COMMENT.sub(' ', read(source))):
            places = [folder / name for folder in (source.parent, *folders)]
            header = next((place.resolve() for place in places if place.is_file()), source)
            if header not in found:
                found.append(header)
    return found


def definitions(file: Path, folders: Sequence[Path]) -> dict[str, Path]:
    """Which file defines what is known at the end of a file: functions, types, headers' macros."""
    origins: dict[str, Path] = {}
    for source in with_headers(file, folders):
        names = defined_names(read(source))
        if source != file.resolve():
            names |= {*MACRO.findall(COMMENT.sub(' ', read(source)))}
        origins |= dict.fromkeys(names, source)
    return origins


def group(files: Sequence[Path], number: int, folders: Sequence[Path] = ()) -> list[list[Path]]:
    """Share files out among ``number`` units of about the same size, of more where names clash.

    The order within a unit is that of the names of the files, so that builds repeat.
    """
    units: list[tuple[list[Path], dict[str, Path]]] = [([], {}) for _ in range(number)]
    for file in sorted(files, key=lambda file: (-file.stat().st_size, file.name)):
        names = definitions(file, folders)
        free = [
            unit
            for unit in units
            if all(unit[1][name] == names[name] for name in unit[1].keys() & names)
        ]
        if not free:
            units.append(([], {}))
            free = units[-1:]
        members, known = min(free, key=lambda unit: sum(f.stat().st_size for f in unit[0]))
        members.append(file)
        known |= names
    return [sorted(members) for members, _ in units if members]


def merge(files: Sequence[Path], folder: Path, headers: Sequence[Path] = ()) -> int:
    """Replace files by units that include them.

    Args:
        files: Of one suffix; mmcv's setup.py takes all that are in their folders.
        folder: For the units.
        headers: Folders of the headers.

    Returns:
        How many units there are.
    """
    suffix = files[0].suffix
    units = group(files, -(-len(files) // FILES_PER_UNIT[suffix]), headers)
    for index, members in enumerate(units):
        lines = []
        for file in members:
            macros = sorted({*MACRO.findall(COMMENT.sub(' ', read(file)))})
            hidden = file.rename(file.with_name(f'{file.name}.inc'))
            lines.append(f'#include "{hidden.relative_to(folder)}"\n')
            lines += [f'#undef {name}\n' for name in macros]
        (folder / f'unit{index}{suffix}').write_text(''.join(lines))
    return len(units)


def merge_sources(csrc: Path) -> tuple[int, int]:
    """Merge what mmcv's setup.py compiles.

    Returns:
        How many files it was, and how many units it is now.
    """
    pytorch = csrc / 'pytorch'
    headers = [csrc / 'common', csrc / 'common' / 'cuda', pytorch]
    sources = [(pytorch, [*pytorch.glob('*.cpp'), *pytorch.glob('cpu/*.cpp')])]
    if has_cuda():
        cuda = pytorch / 'cuda'
        sources += [(cuda, [*cuda.glob(pattern)]) for pattern in ('*.cpp', '*.cu')]
    sources = [(folder, files) for folder, files in sources if files]
    units = sum(merge(files, folder, headers) for folder, files in sources)
    return sum(len(files) for _, files in sources), units


def download(pin: str, folder: Path) -> Path:
    """Fetch a source distribution and unpack it.

    Returns:
        The folder with its setup.py.
    """
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', 'download', '--quiet']
    options = ['--no-deps', '--no-build-isolation', '--no-binary', ':all:', '--dest', str(folder)]
    requirement = folder / 'pin.txt'  # the one place where pip takes hashes
    requirement.write_text(pin)
    subprocess.run([*pip, *options, '--requirement', str(requirement)], check=True)
    (archive,) = folder.glob('*.tar.gz')
    with tarfile.open(archive) as content:
        content.extractall(folder, filter='data')
    (setup,) = folder.glob('*/setup.py')
    return setup.parent


def build(source: Path, log: Path) -> Path | None:
    """Build a wheel, with a line of progress for each unit.

    Returns:
        The wheel, or None if the build failed; ``log`` says why then.
    """
    command = [sys.executable, '-u', 'setup.py', 'bdist_wheel', '--dist-dir', 'dist']
    process = subprocess.Popen(
        command, cwd=source, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with log.open('w') as file:
        for line in process.stdout or ():
            file.write(line)
            if step := STEP.match(line):
                print(f'{step[1]} of {step[2]} units compiled', flush=True)
    if process.wait() != 0:
        return None
    (wheel,) = (source / 'dist').glob('*.whl')
    return wheel


def has_cuda() -> bool:
    """Whether mmcv's setup.py compiles for CUDA."""
    import torch

    return torch.cuda.is_available() or os.getenv('FORCE_CUDA') == '1'


def wheel_folder(wheels: Path) -> Path:
    """The folder of what is built for this Python, this torch and this machine's kind of device."""
    import torch

    python = f'cp{sys.version_info.major}{sys.version_info.minor}'
    return wheels / f'{python}-torch{torch.__version__}-{"cuda" if has_cuda() else "cpu"}'


def built_wheel(pin: str, folder: Path) -> Path:
    """Build the wheel, whole or not at all.

    Raises:
        SystemExit: If mmcv does not build.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / 'build.log'
    with tempfile.TemporaryDirectory() as name:
        print(f'fetching the source distribution of {pin.split()[0]}', flush=True)
        source = download(pin, Path(name))
        merged = Path(name, 'merged')
        shutil.copytree(source, merged)
        number, units = merge_sources(merged / 'mmcv' / 'ops' / 'csrc')
        print(f'compiling {number} files as {units} units', flush=True)
        wheel = build(merged, log)
        if wheel is None:
            print(f'the units do not compile ({log}): file by file, which takes longer', flush=True)
            wheel = build(source, log)
        if wheel is None:
            raise SystemExit(f'error: {pin.split()[0]} does not build, see {log}')
        partial = folder / f'.{wheel.name}.partial'
        shutil.copy(wheel, partial)
        return partial.replace(folder / wheel.name)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('pin', help='what pip is asked for: mmcv==2.1.0, or that with its hashes')
    parser.add_argument('--wheels', type=Path, required=True, help='folder that keeps the wheels')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    folder = wheel_folder(args.wheels)
    name, _, version = args.pin.split()[0].partition('==')
    kept = sorted(folder.glob(f'{name.replace("-", "_")}-{version}-*.whl'))
    wheel = kept[0] if kept else built_wheel(args.pin, folder)
    print(f'installing {wheel}', flush=True)
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', 'install', '--quiet']
    subprocess.run([*pip, '--no-deps', '--no-index', '--force-reinstall', str(wheel)], check=True)


if __name__ == '__main__':
    main()
