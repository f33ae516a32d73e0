"""The operator that docs/add_op.md writes out keeps the contract."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.utils.cpp_extension import include_paths
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]
PAGE = ROOT / 'docs' / 'add_op.md'

pytestmark = pytest.mark.xdist_group('add_op')  # one process compiles


def load(name: str, source: str) -> ModuleType:
    """A module with this source, which others can import."""
    module = sys.modules[name] = ModuleType(name)
    exec(compile(source, str(PAGE), 'exec'), vars(module))
    return module


# Its fences say py: test_docs.py runs those that say python, and an operator registers only once.
SOURCES = re.findall(r'^```py\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL)
row_attention, its_test = map(
    load, ('mmlocalattn.ops.row_attention', 'test_row_attention'), SOURCES
)


HEADER = re.compile(r'// csrc/(cpu/row_attention/[\w.]+):')


@pytest.fixture(scope='module', autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compile the C++ of the page, which is linked to the shared parts of the extension."""
    ext = importlib.util.find_spec('mmlocalattn._ext')
    if ext is None:
        pytest.skip('mmlocalattn._ext is not built, so there is nothing to link the kernels to')
    compiler = os.environ.get('CXX', 'c++')
    if shutil.which(compiler) is None:
        pytest.skip(f'there is no {compiler} to compile the kernels')
    folder = tmp_path_factory.mktemp('csrc')
    sources = []
    for code in re.findall(r'^```cpp\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL):
        file = folder / HEADER.match(code)[1]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
        if file.suffix == '.cpp':
            sources.append(file)
    assert sources
    library = folder / 'row_attention.so'
    csrc = ROOT / 'mmlocalattn' / 'csrc'
    subprocess.run(
        [
            compiler,
            *('-O1', '-Wall', '-Werror', '-std=c++17', '-shared', '-fPIC', '-fopenmp'),
            f'-D_GLIBCXX_USE_CXX11_ABI={torch.compiled_with_cxx11_abi():d}',
            *(f'-I{path}' for path in (csrc, folder)),
            *(f'-isystem{path}' for path in include_paths()),
            *(*sources, ext.origin, '-o', library),
        ],
        check=True,
    )
    torch.ops.load_library(library)


class TestOperatorOfThePage(its_test.TestRowAttention):
    # The page has no CUDA kernels.
    test_cuda_kernel_is_reference = test_cuda_graph = test_cuda_large_map = None
    test_cuda_autocast_mixed_dtypes = test_cuda_streams = None


def test_flops() -> None:
    tensors = torch.randn(2, 1, 2, 5, 1, 4, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output: Tensor = row_attention.row_attention(*tensors, kernel_size=3)
        output.sum().backward()
    assert counter.get_total_flops() == 2 * (1 + 3) * 3 * output.numel()


def test_schema_is_that_of_the_page() -> None:
    schema = str(torch.ops.mmlocalattn._row_attention_backward.default._schema)
    text = ' '.join(PAGE.read_text().split())
    assert f'`{schema.removeprefix("mmlocalattn::")}`' in text
