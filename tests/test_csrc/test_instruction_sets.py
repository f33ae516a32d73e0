"""No code of the built extension needs an instruction set that its machine may lack.

The kernels of an instruction set live in a namespace of its name, or in a function whose name ends
with it, and are called only where the machine has it. All else must run everywhere: also what the
compiler makes of inline functions of headers, of which the linker keeps any one copy.
"""

import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from importlib.util import find_spec

import pytest

ALLOWED = {
    'any machine': (),  # all else
    'portable': (),
    'avx2': ('avx2',),
    'avx512': ('avx2', 'avx512'),
    'avx512_bf16': ('avx2', 'avx512', 'avx512_bf16'),
}
OWNER = re.compile(r'mmlocalattn::cpu::(?:\w+_)??(portable|avx2|avx512_bf16|avx512)(?:::|[<(])')
AVX512 = re.compile(r'%zmm|%k[0-7]|%[xy]mm(?:1[6-9]|2\d|3[01])\b')

Found = dict[tuple[str, str], set[str]]


def needed(instruction: str) -> str | None:
    """The instruction set, None for what every x86-64 has. AVX counts as AVX2: there are no kernels
    in between."""
    if instruction.startswith('k'):  # moves and sums of masks
        return 'avx512'
    if not instruction.startswith('v'):
        return None
    if 'bf16' in instruction.split()[0]:
        return 'avx512_bf16'
    return 'avx512' if AVX512.search(instruction) else 'avx2'


def owner(function: str) -> str:
    """The instruction set that a function, or a type of its template, belongs to."""
    match = OWNER.search(function)
    return match[1] if match else 'any machine'


def instruction_sets(lines: Iterable[str]) -> Found:
    """The functions by owner and by what their instructions need, '' for all of them.

    Args:
        lines: Of objdump, ``<address> <function>:`` and ``<address>:<tab><instruction>``.
    """
    found: Found = {}
    function, place = '', 'any machine'
    for line in lines:
        head, tab, instruction = line.partition('\t')
        need: str | None = None
        if tab:
            need = needed(instruction)
        elif head.endswith('>:\n'):
            function = head.partition(' ')[2].rstrip()
            place, need = owner(function), ''
        if need is not None:
            found.setdefault((place, need), set()).add(function)
    return found


@pytest.fixture(scope='module')
def found() -> Found:
    if platform.machine() not in ('x86_64', 'AMD64'):
        pytest.skip(f'{platform.machine()} has no instruction sets to choose from')
    spec = find_spec('mmlocalattn._ext')
    if spec is None:
        pytest.skip('the extension is not built')
    if shutil.which('objdump') is None:
        pytest.skip('there is no objdump (Debian, Ubuntu: apt install binutils)')
    command = ['objdump', '-d', '--demangle', '--no-show-raw-insn', spec.origin]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        found = instruction_sets(process.stdout)
    assert process.returncode == 0
    return found


def test_kernels_have_their_instructions(found: Found) -> None:
    assert all((place, '') in found for place in ALLOWED)
    assert all((place, place) in found for place in ('avx2', 'avx512', 'avx512_bf16'))


@pytest.mark.parametrize('place', ALLOWED)
def test_nothing_else_has_them(found: Found, place: str) -> None:
    others = {
        need: sorted(functions)[:5]
        for (owner, need), functions in found.items()
        if owner == place and need and need not in ALLOWED[place]
    }
    assert others == {}


def test_reading_of_objdump() -> None:
    lines = """
0000000000001000 <mmlocalattn::cpu::avx2::(anonymous namespace)::sum(float const*)>:
    1000:\tvaddps %ymm1,%ymm2,%ymm3
    1004:\tret
000000000000100a <mmlocalattn::cpu::Kernels<float> mmlocalattn::cpu::kernels_avx2<float>()>:
    100a:\tvmovups %xmm1,(%rax)
    100e:\tvbroadcastss 0xbf165(%rip),%ymm4        # c0173 <std::max(long, long)>
0000000000001010 <std::max(long, long)>:
    1010:\tmovaps %xmm1,%xmm15
0000000000001020 <void at::parallel_for<mmlocalattn::cpu::avx512::run()::{lambda(long)#1}>(long)>:
    1020:\tkmovw  %k1,%eax
    1024:\tvmovss %xmm16,(%rax)
    1028:\tcall   1010 <mmlocalattn::cpu::portable::sum(float const*)>
0000000000001030 <mmlocalattn::cpu::portable::sum(float const*)>:
    1030:\tvmovaps %zmm1,%zmm2
0000000000001040 <mmlocalattn::cpu::avx512_bf16::sum(float const*)>:
    1040:\tvdpbf16ps %zmm1,%zmm2,%zmm3
""".splitlines(keepends=True)
    counts = {key: len(functions) for key, functions in instruction_sets(lines).items()}
    assert counts == {
        ('avx2', ''): 2,
        ('avx2', 'avx2'): 2,
        ('any machine', ''): 1,
        ('avx512', ''): 1,
        ('avx512', 'avx512'): 1,
        ('portable', ''): 1,
        ('portable', 'avx512'): 1,
        ('avx512_bf16', ''): 1,
        ('avx512_bf16', 'avx512_bf16'): 1,
    }
