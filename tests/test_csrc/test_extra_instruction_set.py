"""One more entry in the list of instruction sets is all that a new one takes.

The harness of tools/dev/check_aarch64.py is compiled for this machine with an entry from the
command line, and its kernels must be right for every operator.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import check_aarch64
import pytest
import torch
from aarch64 import comparison
from aarch64.problems import problems

pytestmark = pytest.mark.xdist_group('extra_instruction_set')  # one process builds

ROOT = Path(__file__).parents[2]
TARGETS = {'x86_64': 'sse4.2', 'aarch64': '+simd'}  # any that g++ may always use
PROBLEMS = {problem.operator: problem for problem in reversed(problems())}


@pytest.fixture(scope='module')
def program() -> Path:
    target = TARGETS.get(platform.machine())
    if target is None:
        pytest.skip(f'no name of an instruction set of {platform.machine()} to compile for')
    if shutil.which('g++') is None:
        pytest.skip('there is no g++ to compile the kernels')
    # Without optimisation: it would take a minute more, and tell nothing more.
    flags = f"""-O0 -DMMLOCALATTN_EXTRA_ISA='(extra, 16, "{target}", true, 0)'"""
    worker = os.getenv('PYTEST_XDIST_WORKER', 'main')  # never two builds in a folder
    return check_aarch64.build(ROOT / 'build' / 'extra_isa' / worker, 'g++', flags)


def test_every_operator_is_compiled_for_it(program: Path) -> None:
    command = ['nm', '--demangle', str(program)]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions = [line for line in symbols.splitlines() if 'mmlocalattn::cpu::extra::' in line]
    for operator in comparison.ENTRIES:
        assert any(f'::forward<float>(mmlocalattn::cpu::{operator}::' in name for name in functions)


@pytest.mark.parametrize('operator', comparison.ENTRIES)
@pytest.mark.parametrize('isa', ['extra', 'portable'])
def test_kernels_are_reference(program: Path, operator: str, isa: str) -> None:
    harness = comparison.Harness(program, isa)
    errors = comparison.check(harness, PROBLEMS[operator], torch.float32)
    assert all(error.value <= error.allowed for error in errors), errors


def test_unknown_name(program: Path) -> None:
    harness = comparison.Harness(program, 'unheard_of')
    with pytest.raises(RuntimeError, match='no instruction set is called unheard_of'):
        comparison.check(harness, PROBLEMS['slide'], torch.float32)
