"""What the compiled kernels give, beside what the references give."""

import shlex
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aarch64.disassembly import Disassembly
from aarch64.problems import Problem, draw, problems

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
