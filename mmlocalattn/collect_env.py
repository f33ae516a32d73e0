"""Print what a bug report needs: versions, compiled kernels, and how to build them.

Run ``python -m mmlocalattn.collect_env``. It works without the mm* packages too.
"""

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess

import torch

from mmlocalattn import __version__

MM_MODULES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
DEVICES = ('cpu', 'cuda')

BUILD_HELP = """\
To compare them with their references on this machine, in seconds: python -m mmlocalattn.check

To build the kernels, in a checkout of mmlocalattn with torch and mmcv installed:
  CPU:   pip install --no-build-isolation -e .
  CUDA:  FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST='8.0;9.0' pip install --no-build-isolation -e .
nvcc must be of torch's CUDA version. On a machine with a GPU no variable is needed."""


def collect_env() -> dict[str, str]:
    """Collect the versions of everything that takes part in a run.

    Returns:
        Name to version; ``'not installed'`` for what is missing.
    """
    try:
        from mmengine.utils.dl_utils import collect_env as collect_base_env

        env = {name: str(value) for name, value in collect_base_env().items()}
        del env['PyTorch compiling details']  # a page long
    except ImportError:
        env = {'Python': platform.python_version(), 'PyTorch': torch.__version__}
        env['CUDA available'] = str(torch.cuda.is_available())
    env['CUDA of PyTorch'] = torch.version.cuda or 'none'
    env['nvcc'] = _tool_version('nvcc', line=-2)
    env['g++'] = _tool_version('g++', line=0)
    env.update((module, module_version(module)) for module in MM_MODULES)
    env['mmlocalattn'] = __version__
    return env


def describe_kernels() -> str:
    """Describe the compiled extension and, for every operator, which devices have a kernel.

    Returns:
        A line with the extension's file, then a table of operators and devices.
    """
    spec = importlib.util.find_spec('mmlocalattn._ext')
    extension = f'mmlocalattn._ext: {spec.origin if spec else "not built"}'
    try:
        from mmlocalattn import ops
        from mmlocalattn.ops._implementation import chosen
    except ImportError as error:  # built for another torch, or older than the Python code
        return f'{extension}\n{error}'
    served = {True: 'compiled', False: 'reference'}
    rows: list[tuple[str, ...]] = [('operator', *DEVICES)]
    for name in ops.OPS:
        rows.append((name, *(served[ops.has_kernel(name, device)] for device in DEVICES)))
    width = max(len(name) for name, *_ in rows)
    table = (f'{name:{width}}  {cpu:9}  {cuda}' for name, cpu, cuda in rows)
    choice = f'CUDA tensors are served by: {chosen("cuda")} (MMLOCALATTN_CUDA)'
    return '\n'.join([extension, *table, choice])


def module_version(module: str) -> str:
    """Names and versions of the distributions that bring a module, without importing it.

    Returns:
        As ``'onedl-mmcv 2.3.6'``; ``'not installed'`` if no distribution brings it.
    """
    distributions = importlib.metadata.packages_distributions().get(module, [])
    versions = (f'{name} {importlib.metadata.version(name)}' for name in distributions)
    return ', '.join(versions) or 'not installed'


def _tool_version(tool: str, line: int) -> str:
    """One line of what ``tool --version`` prints."""
    if shutil.which(tool) is None:
        return 'not installed'
    output = subprocess.run([tool, '--version'], capture_output=True, text=True, check=True).stdout
    return output.strip().splitlines()[line]


def main() -> None:
    """Print everything."""
    for name, value in collect_env().items():
        print(f'{name}: {value}')
    print(f'\n{describe_kernels()}\n\n{BUILD_HELP}')


if __name__ == '__main__':
    main()
