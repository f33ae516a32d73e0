"""Check the CPU kernels on aarch64, emulated. Exit status 1 if one is wrong, or not vectorised.

The portable instruction set has vectors of 16 bytes, which is NEON. A harness without PyTorch is
cross-compiled with the kernels and runs under qemu. Its results are compared with autograd of the
references in fp64, which the tests of the operators compare with plain loops. The multiply-adds in
the inner loops of the kernels must be `fmla v`, those of vectors, but for few.

Debian and Ubuntu: `apt install g++-aarch64-linux-gnu qemu-user`. To find an error without qemu:
`--compiler g++ --qemu '' --flags='-O1 -g' --build-folder build/harness`.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
CSRC = ROOT / 'mmlocalattn' / 'csrc'
HARNESS = Path(__file__).with_name('aarch64')
COMPILER, QEMU, FLAGS = 'aarch64-linux-gnu-g++', 'qemu-aarch64', '-O3'
PACKAGES = {COMPILER: 'g++-aarch64-linux-gnu', QEMU: 'qemu-user'}

NINJA_FILE = """\
rule compile
  command = {compiler} -MMD -MF $out.d -std=c++17 -I{csrc} {flags} -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {compiler} {flags} {static} $in -o $out
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--compiler', default=COMPILER, help='default: %(default)s')
    parser.add_argument('--flags', default=FLAGS, help='of the compiler, default: %(default)s')
    parser.add_argument('--qemu', default=QEMU, help="emulator, '' for none; default: %(default)s")
    parser.add_argument('--isa', default='portable', help='name in isa.h, default: %(default)s')
    parser.add_argument(
        '--build-folder', type=Path, default=ROOT / 'build' / 'aarch64', help='default: %(default)s'
    )
    return parser.parse_args(argv)


def missing(programs: Iterable[str]) -> str | None:
    """What is not installed, for a message."""
    names = [PACKAGES.get(name, name) for name in programs if shutil.which(name) is None]
    if not names:
        return None
    return f'{" and ".join(names)} {"is" if len(names) == 1 else "are"} not installed'


def build(folder: Path, compiler: str, flags: str, static: bool = False) -> Path:
    """Compile what has changed of the harness.

    Raises:
        RuntimeError: With the compiler's output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = NINJA_FILE.format(
        compiler=compiler, csrc=CSRC, flags=flags, static='-static' if static else ''
    )
    sources = [*sorted(CSRC.glob('cpu/*/kernels.cpp')), HARNESS / 'harness.cpp']
    objects = [f'{source.parent.name}.o' for source in sources]
    for source, name in zip(sources, objects):
        text += f'build {name}: compile {source}\n'
    text += f'build harness: link {" ".join(objects)}\n'
    (folder / 'build.ninja').write_text(text)
    jobs = str(len(os.sched_getaffinity(0)))
    command = [sys.executable, '-m', 'ninja', '-C', str(folder), '-j', jobs]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f'the harness does not build:\n{result.stdout}')
    return folder / 'harness'


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from aarch64.comparison import Harness, report
    from aarch64.disassembly import disassemble

    programs = [shlex.split(command)[0] for command in (args.compiler, args.qemu) if command]
    if what := missing(programs):
        raise SystemExit(f'error: {what}')
    command = [*shlex.split(args.compiler), '-dumpmachine']
    machine = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    try:
        program = build(args.build_folder, args.compiler, args.flags, static=bool(args.qemu))
        disassembly = disassemble(program) if machine.startswith('aarch64') else None
        return 0 if report(Harness(program, args.isa, args.qemu), disassembly) else 1
    except RuntimeError as error:
        raise SystemExit(f'error: {error}') from None


if __name__ == '__main__':
    sys.exit(main())
