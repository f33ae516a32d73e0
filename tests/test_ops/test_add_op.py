"""The operator that docs/add_op.md writes out keeps the contract."""

import re
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

PAGE = Path(__file__).parents[2] / 'docs' / 'add_op.md'


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


class TestOperatorOfThePage(its_test.TestRowAttention):
    # Nothing compiles the kernels of the page here.
    test_has_kernel = test_cpu_kernel_is_reference = None
    test_cuda_kernel_is_reference = test_cuda_graph = None


def test_flops() -> None:
    tensors = torch.randn(2, 1, 2, 5, 1, 4, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output: Tensor = row_attention.row_attention(*tensors, kernel_size=3)
        output.sum().backward()
    assert counter.get_total_flops() == 2 * (1 + 2) * 3 * output.numel()


def test_schema_is_that_of_the_page() -> None:
    schema = str(torch.ops.mmlocalattn._row_attention_backward.default._schema)
    text = ' '.join(PAGE.read_text().split())
    assert f'`{schema.removeprefix("mmlocalattn::")}`' in text
