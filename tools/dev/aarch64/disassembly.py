"""How many multiply-adds of the compiled kernels are those of vectors."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import torch

from aarch64.problems import DTYPES


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
