"""Builds the CUDA kernels' own source for the CPU and loads it.

There are two builds. `races` checks for races in shared and global memory and loads into any
process. Its numbers are as bad as a GPU's may be: powers of two are off by up to two units in the
last place, products and sums become fused ones, tensor cores cut off the bits of a term that its
sum has no room for. `asan` has AddressSanitizer, whose library must be loaded first (see
:func:`asan_env`), and the numbers of a CPU.
"""

import ctypes
import fcntl
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from mmlocalattn.ops import OPS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = ROOT / 'mmlocalattn' / 'csrc'
TORCH = Path(torch.__file__).parent
CXX = 'g++'

# As nvcc does. GCC fuses at -O1 only if it may take long; copies of shuffles are other call sites.
FUSED = '-fexpensive-optimizations -fno-thread-jumps -ffp-contract=fast' + ' -mfma' * (
    platform.machine() == 'x86_64'
)
KERNEL_FLAGS = {
    'races': f'-fsanitize=thread -DMMLOCALATTN_GPU_ARITHMETIC {FUSED}',
    'asan': '-fsanitize=address,alignment -fno-sanitize-recover=alignment',
}
# No sanitizer for what switches stacks; the calls of -fsanitize=thread come to races.cpp.
EMULATOR_FLAGS = {
    'races': '-O2 -DMMLOCALATTN_CHECK_RACES',
    'asan': '-O2 -DMMLOCALATTN_ADDRESS_SANITIZER',
}
LINK_FLAGS = {'races': '', 'asan': KERNEL_FLAGS['asan']}

# What most of the time goes to is compiled once.
TORCH_HEADERS = '#include <ATen/ATen.h>\n#include <torch/library.h>\n'
NINJA_FILE = """\
compile = {cxx} -std=c++17 -O1 -g1 -fPIC -w -fno-omit-frame-pointer -fpch-preprocess $
  -DMMLOCALATTN_CUDA_EMULATION -D_GLIBCXX_USE_CXX11_ABI={abi:d} {includes}
rule precompile
  command = $compile $flags -x c++-header -c $in -o $out
rule compile
  command = $compile -MMD -MF $out.d $flags -x c++ -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {cxx} -shared $in $flags -L{torch_libraries} -Wl,-rpath,{torch_libraries} $
    -ltorch_cpu -lc10 -Wl,-z,defs -o $out
build torch.h.gch: precompile torch.h
  flags = {kernel_flags}
"""


def kernel_names() -> list[str]:
    """The `__global__` functions of csrc/cuda, in no order."""
    pattern = re.compile(r'__global__\s+void\s+(?:__launch_bounds__\([^{;]*?\)\s+)?(\w+)\s*\(')
    sources = [*CSRC.glob('cuda/**/*.cu'), *CSRC.glob('cuda/**/*.cuh')]
    return [name for source in sources for name in pattern.findall(source.read_text())]


def ninja_file(build: str) -> str:
    api = TORCH / 'include' / 'torch' / 'csrc' / 'api' / 'include'
    includes = [f'-I{path}' for path in (HERE, CSRC)]
    includes += [f'-isystem {path}' for path in (TORCH / 'include', api)]
    text = NINJA_FILE.format(
        cxx=CXX,
        abi=torch.compiled_with_cxx11_abi(),
        includes=' '.join(includes),
        torch_libraries=TORCH / 'lib',
        kernel_flags=KERNEL_FLAGS[build],
    )
    emulator = ['emulator.cpp', *(['races.cpp'] if build == 'races' else [])]
    kernels = [HERE / 'probes.cpp', *sorted(CSRC.glob('cuda/**/*.cu'))]
    # Operators have files of the same names, in folders of their own.
    objects = []
    for source in [*(HERE / name for name in emulator), *kernels]:
        is_kernel = source in kernels
        flags = f'{KERNEL_FLAGS[build]} -include torch.h' if is_kernel else EMULATOR_FLAGS[build]
        objects.append(f'{source.relative_to(ROOT)}.o')
        text += f'build {objects[-1]}: compile {source}{" | torch.h.gch" * is_kernel}\n'
        text += f'  flags = {flags}\n'
    link = f'build emulated.so: link {" ".join(objects)}\n  flags = {LINK_FLAGS[build]}\n'
    return text + link


def build_library(build: str) -> Path:
    """Compiles what has changed, once; other processes that want it wait.

    Raises:
        RuntimeError: With the compiler's output.
    """
    folder = ROOT / 'build' / 'cuda_emulation' / build
    failure = _compile(build, folder)
    if failure:
        raise RuntimeError(f'the emulation of the CUDA kernels does not build:\n{failure}')
    return folder / 'emulated.so'


@cache
def _compile(build: str, folder: Path) -> str:
    """The compiler's output if it fails, for every test that asks, else nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    headers = folder / 'torch.h'
    with open(folder / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two compilers would break a precompiled header
        if not headers.is_file() or headers.read_text() != TORCH_HEADERS:
            headers.write_text(TORCH_HEADERS)
        (folder / 'build.ninja').write_text(ninja_file(build))
        command = [sys.executable, '-m', 'ninja', '-C', folder]
        result = subprocess.run(command, capture_output=True, text=True)
    return '' if result.returncode == 0 else result.stdout + result.stderr


def asan_env() -> dict[str, str]:
    """Environment of a process that loads the `asan` build."""
    libraries = [
        subprocess.run(
            [CXX, f'-print-file-name={name}'], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ('libasan.so', 'libstdc++.so')
    ]
    options = 'detect_leaks=0:detect_stack_use_after_return=0'
    return os.environ | {'LD_PRELOAD': ' '.join(libraries), 'ASAN_OPTIONS': options}


class Emulator:
    """The loaded kernels; ``torch.ops.mmlocalattn_emulated`` then has the operators.

    Attributes:
        kernels: Name of every compiled kernel instance by its place in the library.
    """

    def __init__(self, build: str) -> None:
        path = build_library(build)
        self._schemas = torch.library.Library('mmlocalattn_emulated', 'DEF')
        for name in (*OPS, *(f'_{name}_backward' for name in OPS)):
            schema = str(getattr(torch.ops.mmlocalattn, name).default._schema)
            self._schemas.define(schema.removeprefix('mmlocalattn::'))
        torch.ops.load_library(path)
        self._library = ctypes.CDLL(path)
        self._library.emulation_probe.restype = ctypes.c_char_p
        self._library.emulation_probe.argtypes = [
            *(ctypes.c_char_p, ctypes.c_int64, ctypes.c_int),
            *[ctypes.c_void_p] * 3,
        ]
        self._library.emulation_launches.restype = ctypes.c_int64
        self._library.emulation_launches.argtypes = [ctypes.c_size_t]
        self._library.emulation_name_kernel.argtypes = [ctypes.c_size_t, ctypes.c_char_p]
        self.kernels = {}
        for place, name in functions(path):
            self._library.emulation_name_kernel(place, name.encode())
            if name.partition('<')[0] in kernel_names():
                self.kernels[place] = name

    def launches(self) -> Counter[str]:
        """How often every kernel instance has run."""
        count = self._library.emulation_launches
        return Counter({name: count(place) for place, name in self.kernels.items()})

    def probe(self, name: str, a: Tensor, b: Tensor, out: Tensor, blocks: int = 1) -> str:
        """Runs a kernel of probes.cpp in blocks of 64 threads, those of fragments of 32.

        Returns:
            The error that the emulator reports, empty if none.
        """
        threads = 32 if ' ' in name or 'copy' in name else 64
        pointers = [tensor.data_ptr() for tensor in (a, b, out)]
        return self._library.emulation_probe(name.encode(), blocks, threads, *pointers).decode()


def functions(library: Path) -> list[tuple[int, str]]:
    """Place and name, with template arguments, of every kernel function of a library.

    Raises:
        RuntimeError: With what nm says.
    """
    command = ['nm', '--demangle', '--defined-only', library]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f'nm cannot read {library}:\n{result.stderr}')
    found = []
    for line in result.stdout.splitlines():
        place, kind, name = line.split(' ', 2)
        if kind in 'tTwW' and '[clone' not in name and '{lambda' not in name:
            name = name.replace('(anonymous namespace)::', '').partition('(')[0]
            match = re.search(r'\b(?P<name>\w+_kernel)(?P<arguments><.*>)?$', name)
            if match:
                found.append((int(place, 16), match[0]))
    return found
