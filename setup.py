"""Builds ``mmlocalattn._ext``, the compiled operators; everything else is in pyproject.toml.

The switches are mmcv's:

- ``FORCE_CUDA=1`` compiles the CUDA kernels without a GPU too; with a GPU and nvcc they always are.
- ``TORCH_CUDA_ARCH_LIST='8.0;9.0'`` names GPU architectures, ``MMCV_CUDA_ARGS`` adds nvcc's flags.
- ``MMLOCALATTN_CXX_ARGS='-g -O1'`` adds the C++ compiler's flags, after ours; ``CXX`` names it.
- ``MAX_JOBS=2`` limits how many files are compiled at once.
- ``MMLOCALATTN_WITH_OPS=0`` builds no extension; the PyTorch references then serve every device.
- ``MMCV_CSRC_DIR=.../mmcv/ops/csrc`` replaces the helper headers of the installed mmcv.

On Windows no extension is built. Apple's clang compiles the kernels for all cores if it finds
libomp's headers, in Homebrew's folders or in that of ``LIBOMP_PREFIX``.
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

CSRC = Path('mmlocalattn', 'csrc')
OPS = Path('mmlocalattn', 'ops')
LICENSE = 'Apache-2.0'


class BuildPy(build_py):
    """Puts configs, their index and tools into mmlocalattn/.mim, where mim looks for them."""

    def run(self) -> None:
        """Links them in an editable install, else copies them."""
        super().run()
        root = Path() if self.editable_mode else Path(self.build_lib)
        mim = root / 'mmlocalattn' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in ('configs', 'model-index.yml', 'tools'):
            if self.editable_mode and sys.platform != 'win32':  # where links need a privilege
                (mim / name).symlink_to(Path('..', '..', name))
            elif Path(name).is_dir():
                shutil.copytree(name, mim / name, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy(name, mim)


def stop(message: str) -> NoReturn:
    """Ends the build with one line."""
    raise SystemExit(f'mmlocalattn: {message}')


def mmcv_headers() -> Path:
    """Finds the folder of mmcv's helper headers without importing mmcv."""
    spec = find_spec('mmcv')
    installed = Path(spec.origin).parent / 'ops' / 'csrc' if spec and spec.origin else None
    csrc = os.getenv('MMCV_CSRC_DIR') or installed
    if csrc and Path(csrc, 'common', 'pytorch_cpp_helper.hpp').is_file():
        return Path(csrc, 'common').resolve()
    found = f'{csrc} has no common/pytorch_cpp_helper.hpp' if csrc else 'mmcv is not installed'
    stop(
        f"the build needs mmcv's helper headers, but {found}: install mmcv (mmcv-lite has none) "
        'with `pip install --no-build-isolation mmcv==2.1.0`, '
        'or set MMCV_CSRC_DIR to an mmcv/ops/csrc folder.'
    )


def cuda_toolkit() -> tuple[Path, int] | None:
    """Root and major version of the CUDA toolkit, asked of nvcc, which may be a wrapper."""
    home = os.getenv('CUDA_HOME') or os.getenv('CUDA_PATH')
    path = f'{home}/bin' if home else os.pathsep.join([os.environ['PATH'], '/usr/local/cuda/bin'])
    nvcc = shutil.which('nvcc', path=path)
    if nvcc is None:
        return None
    command = [nvcc, '--version']
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    command = [nvcc, '--dryrun', '-x', 'cu', os.devnull]
    dryrun = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    top = re.search(r'^#\$ TOP=(.+)$', dryrun, re.MULTILINE)
    major = re.search(r'release (\d+)\.', version)
    if top is None or major is None:
        stop(f'{nvcc} does not say its folder and version: set CUDA_HOME to a CUDA toolkit.')
    return Path(top[1].strip()).resolve(), int(major[1])


def wants_cuda() -> bool:
    """Whether to compile the CUDA kernels; sets CUDA_HOME for torch.utils.cpp_extension if so."""
    import torch

    forced, cuda = os.getenv('FORCE_CUDA') == '1', torch.version.cuda
    if forced and cuda is None:
        stop(
            f'FORCE_CUDA=1, but torch {torch.__version__} is built without CUDA: install a CUDA '
            'build of torch, or unset FORCE_CUDA to build the CPU kernels only.'
        )
    if cuda is None or not (forced or torch.cuda.is_available()):
        return False
    toolkit = cuda_toolkit()
    if toolkit is None and forced:
        stop(
            f'FORCE_CUDA=1, but there is no nvcc: install the CUDA {cuda} toolkit and set '
            'CUDA_HOME to it, or unset FORCE_CUDA to build the CPU kernels only.'
        )
    if toolkit is None:
        print('mmlocalattn: there is a GPU but no nvcc, so only the CPU kernels are built.')
        return False
    home, major = toolkit
    if major != int(cuda.split('.')[0]):
        stop(
            f'nvcc in {home} is CUDA {major}, but torch {torch.__version__} is built with CUDA '
            f'{cuda}: set CUDA_HOME to a CUDA {cuda} toolkit, or build the CPU kernels only '
            '(no FORCE_CUDA, and CUDA_VISIBLE_DEVICES= if there is a GPU).'
        )
    os.environ['CUDA_HOME'] = str(home)
    return True


def wheel_cuda_headers() -> list[str]:
    """Headers of the nvidia-* wheels, for a toolkit without its libraries' own (cublas_v2.h)."""
    if Path(os.environ['CUDA_HOME'], 'include', 'cublas_v2.h').is_file():
        return []
    spec = find_spec('nvidia')
    roots = (spec and spec.submodule_search_locations) or ()
    return sorted(str(path) for root in roots for path in Path(root).glob('*/include'))


def openmp_flags() -> tuple[list[str], list[str]]:
    """What compiler and linker need for at::parallel_for, which else runs on one thread.

    GCC's linker gets nothing, so that the extension shares the OpenMP library that torch has loaded
    instead of bringing a second one; so does Apple's, which looks names up when they are used. But
    GCC's library, which torch loads on Linux, lacks what clang calls.
    """
    command = [*shlex.split(os.getenv('CXX', 'c++')), '--version']
    try:
        version = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        version = ''  # the build will say what is wrong with it
    if 'Apple clang' not in version:
        return ['-fopenmp'], ['-fopenmp'] if 'clang' in version else []
    prefixes = os.getenv('LIBOMP_PREFIX'), '/opt/homebrew/opt/libomp', '/usr/local/opt/libomp'
    for prefix in filter(None, prefixes):
        if Path(prefix, 'include', 'omp.h').is_file():
            return ['-Xpreprocessor', '-fopenmp', f'-I{prefix}/include'], []
    print('mmlocalattn: no libomp, so the kernels run on one thread: brew install libomp')
    return [], []


def compilers_that_fit() -> int:
    """How many compilers may run at once: 4 GiB each."""
    cores = os.cpu_count() or 1
    try:
        memory_gib = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') >> 30
    except (AttributeError, ValueError):  # not every system says
        return cores
    return max(1, min(cores, memory_gib // 4))


def builds_kernels() -> bool:
    """Whether there is an extension to build; says why not where nobody has asked for that."""
    if os.getenv('MMLOCALATTN_WITH_OPS') == '0':
        return False
    if sys.platform == 'win32':
        print(
            'mmlocalattn: on Windows the PyTorch references serve, no kernels are built; '
            'WSL2 builds them.'
        )
        return False
    return True


def write_schemas(path: Path) -> Path:
    """Writes a C++ file that has the operators' schemas, for programs without Python."""
    registered = runpy.run_path(str(OPS / '_schema.py'))['registered']
    files = sorted(OPS.glob('*.py'))
    schemas = [schema for file in files for schema in registered(file.read_text())]
    rows = [
        f'    {{"{schema.name}",\n     "{schema.forward}",\n     "{schema.backward}"}},\n'
        for schema in schemas
    ]
    text = (
        f'// Made by setup.py of {OPS}/*.py.\n#include "schemas.h"\n\nnamespace mmlocalattn {{\n\n'
        f'const Schema schemas[] = {{\n{"".join(rows)}}};\n'
        f'const size_t number_of_schemas = {len(schemas)};\n\n}}  // namespace mmlocalattn\n'
    )
    if not path.is_file() or path.read_text() != text:  # else there is nothing to compile
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return path


def extension() -> Extension:
    """``mmlocalattn._ext``: all CPU kernels, and all CUDA kernels if `wants_cuda`."""
    if find_spec('torch') is None:
        stop(
            'the kernels are compiled against the installed torch, and there is none: install it, '
            'then run `pip install --no-build-isolation .` (an isolated build sees no torch), '
            'or set MMLOCALATTN_WITH_OPS=0 to build without kernels.'
        )
    headers, with_cuda = mmcv_headers(), wants_cuda()
    # Imported after wants_cuda has set CUDA_HOME, which it reads once.
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    os.environ.setdefault('MAX_JOBS', str(compilers_that_fit()))
    openmp, openmp_link = openmp_flags()
    flags = {
        'cxx': ['-O3', '-g0', *openmp, *shlex.split(os.getenv('MMLOCALATTN_CXX_ARGS', ''))],
        'nvcc': ['-O3', *os.getenv('MMCV_CUDA_ARGS', '').split()],
    }
    # What takes longest comes first.
    kernels = sorted(CSRC.glob('cpu/*/kernels.cpp'))
    others = sorted({*CSRC.glob('**/*.cpp')} - {*kernels})
    sources = [*kernels, *others, write_schemas(Path('build', 'schemas.cpp'))]
    include_dirs = [CSRC.resolve(), headers]
    if with_cuda:
        sources += sorted(CSRC.glob('cuda/**/*.cu'))
        include_dirs.append(headers / 'cuda')
    built = (CUDAExtension if with_cuda else CppExtension)(
        'mmlocalattn._ext',
        list(map(str, sources)),
        include_dirs=list(map(str, include_dirs)),
        extra_compile_args=flags if with_cuda else flags['cxx'],
        extra_link_args=openmp_link,
    )
    built.libraries.remove('torch_python')  # which programs without Python cannot load
    if with_cuda:
        built.include_dirs += wheel_cuda_headers()
    return built


def main() -> None:
    """Runs setuptools."""
    if not builds_kernels():
        setup(license=LICENSE, cmdclass={'build_py': BuildPy})
        return
    ext_modules = [extension()]
    from torch.utils.cpp_extension import BuildExtension

    setup(
        license=LICENSE,
        ext_modules=ext_modules,
        cmdclass={'build_ext': BuildExtension, 'build_py': BuildPy},
        # Without it setuptools skips the build unless a source is newer, whatever happened to the
        # headers or to torch; ninja, asked every time, compiles what they touch.
        options={'build_ext': {'force': True}},
    )


if __name__ == '__main__':
    main()
