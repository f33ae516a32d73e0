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
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from aarch64.problems import DTYPES, Problem, draw, problems
from torch import Tensor

ROOT = Path(__file__).parents[2]
CSRC = ROOT / 'mmlocalattn' / 'csrc'
HARNESS = Path(__file__).with_name('aarch64')
COMPILER, QEMU, FLAGS = 'aarch64-linux-gnu-g++', 'qemu-aarch64', '-O3'
PACKAGES = {COMPILER: 'g++-aarch64-linux-gnu', QEMU: 'qemu-user'}
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-5}  # as in tests/test_ops/contract.py
# The kernels of every folder by direction.
ENTRIES: dict[str, dict[str, tuple[str, ...]]] = {
    'neighborhood': {'forward': ('forward', 'rotate'), 'backward': ('backward', 'rotate')},
    'query_and_attend': {
        'forward': ('forward',),
        'backward': ('backward_windows', 'backward_positions'),
    },
    'slide': {'forward': ('forward',), 'backward': ('backward',)},
    'stand_alone': {'forward': ('forward',), 'backward': ('backward',)},
}

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


class Harness:
    """The compiled kernels.

    Args:
        program: As :func:`build` returned it.
        isa: Name of an instruction set in its list.
        qemu: Emulator that runs the program, '' for none.
    """

    def __init__(self, program: Path, isa: str = 'portable', qemu: str = '') -> None:
        self.isa, self.command = isa, [*shlex.split(qemu), str(program), isa]
        self.input, self.output = program.with_name('input'), program.with_name('output')

    def run(self, name: str, dtype: torch.dtype, numbers: Iterable) -> list[Tensor]:
        """The arrays that it writes, flat."""
        flat: list = []
        for item in numbers:
            if isinstance(item, Tensor):
                flat += [[item.numel()], item.detach().flatten().numpy()]
            else:
                flat.append([item])
        np.concatenate(flat, dtype=np.float64).tofile(self.input)
        kind = str(dtype).removeprefix('torch.')
        command = [*self.command, name, kind, str(self.input), str(self.output)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(
                f'{shlex.join(command)}: {result.returncode} {result.stderr.strip()}'
            )
        return list(self._arrays())

    def _arrays(self) -> Iterator[Tensor]:
        rest = torch.from_numpy(np.fromfile(self.output))
        while rest.numel() > 0:
            size = int(rest[0]) + 1
            yield rest[1:size]
            rest = rest[size:]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest error as a fraction of the largest value; infinite for NaN."""
    expected = expected.double()
    difference = (actual.double().view_as(expected) - expected).abs().max()
    return (difference / expected.abs().max().clamp(min=1e-3)).nan_to_num(torch.inf).item()


@dataclass
class Error:
    """A relative error and the largest that is right."""

    value: float
    allowed: float

    @property
    def ratio(self) -> float:
        return self.value / self.allowed


def check(harness: Harness, problem: Problem, dtype: torch.dtype) -> list[Error]:
    """The errors of the output and all gradients."""
    tensors = [tensor.to(dtype).double() for tensor in problem.tensors]
    grad_output = draw(*problem.reference(*tensors).shape).to(dtype).double()
    numbers = problem.numbers(*tensors, grad_output)
    output, *arrays = harness.run(problem.name or problem.operator, dtype, numbers)
    exact = problem.run_reference(tensors, grad_output, torch.float64)
    rounded = problem.run_reference(tensors, grad_output, dtype)
    errors = []
    for ours, truth, theirs in zip(
        [output, *problem.gradients(*arrays)], exact, rounded, strict=True
    ):
        allowed = TOLERANCES.get(dtype)
        if allowed is None:
            one_rounding = torch.finfo(dtype).eps / 2
            allowed = 2 * max(relative_error(theirs, truth), one_rounding)
        errors.append(Error(relative_error(ours, truth), allowed))
    return errors


class Disassembly:
    """Functions by address, with what they call and the multiply-adds in their inner loops.

    Args:
        lines: Of objdump.
    """

    FUNCTION = re.compile(r'([0-9a-f]+) <(.*)>:$')
    INSTRUCTION = re.compile(r' *([0-9a-f]+):\t(.*)')
    BRANCH = re.compile(r'(?:bl?|b\.\w+|cbn?z|tbn?z)\t(?:.*, )?([0-9a-f]+) <')
    VECTOR = re.compile(r'fml[as]\tv')
    SCALAR = re.compile(r'fn?m(?:add|sub)\t')

    def __init__(self, lines: Iterable[str]) -> None:
        self.names: dict[int, str] = {}
        self.calls: dict[int, list[int]] = {}
        self.counts: dict[int, tuple[int, int]] = {}
        name, body = '', []
        for line in (*lines, '0 <>:'):  # the last one ends the one before
            if match := self.INSTRUCTION.match(line):
                body.append((int(match[1], 16), match[2]))
            elif match := self.FUNCTION.match(line):
                if body and 'mmlocalattn::cpu::' in name:
                    self._add(name, body)
                name, body = match[2], []

    def _add(self, name: str, body: list[tuple[int, str]]) -> None:
        branches = [
            (int(match[1], 16), place)
            for place, instruction in body
            if (match := self.BRANCH.match(instruction))
        ]
        first = body[0][0]
        loops = [(begin, end) for begin, end in branches if first <= begin <= end]
        inner = [
            loop
            for loop in loops
            if not any(loop != (a, b) and loop[0] <= a and b <= loop[1] for a, b in loops)
        ]
        looped = [text for place, text in body if any(a <= place <= b for a, b in inner)]
        vectors, scalars = (
            sum(map(bool, map(pattern.match, looped))) for pattern in (self.VECTOR, self.SCALAR)
        )
        self.names[first], self.counts[first] = name, (vectors, scalars)
        self.calls[first] = [target for target, _ in branches]

    def count(self, operator: str, kernel: str, dtype: torch.dtype, isa: str) -> tuple[int, int]:
        """Multiply-adds of vectors and of scalars in the inner loops of a kernel and of what it
        calls."""
        kind = re.escape(DTYPES[dtype])
        argument = 'RotaryRow' if kernel == 'rotate' else f'Piece<{kind}>'
        entry = re.compile(rf'::{isa}::.*::{kernel}<(?:.*, )?{kind}>\(.*{operator}::{argument}')
        places = [place for place, name in self.names.items() if entry.search(name)]
        assert places, f'there is no {kernel} of {operator} for {dtype}'
        seen: set[int] = set()
        while places:
            place = places.pop()
            if place in self.names and place not in seen:
                seen.add(place)
                places += self.calls[place]
        vectors, scalars = zip(*(self.counts[place] for place in seen))
        return sum(vectors), sum(scalars)


def disassemble(program: Path) -> Disassembly:
    objdump = shutil.which('aarch64-linux-gnu-objdump') or 'objdump'
    command = [objdump, '-d', '--demangle', '--no-show-raw-insn', str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        return Disassembly(process.stdout)


def report(harness: Harness, disassembly: Disassembly | None) -> bool:
    """Print a line for each operator, dtype and direction. Returns whether all is right."""
    worst: dict[tuple, Error] = {}
    for problem in problems():
        for dtype in problem.dtypes:
            output, *grads = check(harness, problem, dtype)
            for direction, errors in (('forward', [output]), ('backward', grads)):
                key = problem.operator, dtype, direction
                worst[key] = max(
                    *errors, worst.get(key, Error(0, 1)), key=lambda error: error.ratio
                )
    is_right = True
    for (operator, dtype, direction), error in worst.items():
        faults = [] if error.ratio <= 1 else ['WRONG']
        counted = ''
        if disassembly is not None:
            kernels = ENTRIES[operator][direction]
            counts = [disassembly.count(operator, kernel, dtype, harness.isa) for kernel in kernels]
            vectors, scalars = map(sum, zip(*counts))
            counted = f', {vectors} fmla v and {scalars} scalar in inner loops'
            faults += [] if vectors > 10 * scalars else ['NOT VECTORISED']
        kind = str(dtype).removeprefix('torch.')
        print(
            f'{operator} {kind} {direction}: error {error.value:.1e} of {error.allowed:.1e}'
            f'{counted} {" ".join(faults)}'.rstrip()
        )
        is_right = is_right and not faults
    return is_right


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
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
