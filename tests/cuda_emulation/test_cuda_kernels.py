"""The CUDA kernels' own source, run on the CPU, against the references.

Logic only: what a GPU compiles and how fast it is, the tests marked `cuda` and the benchmark show.
"""

import functools
import os
import subprocess
import sys
from typing import Any

import pytest
import test_neighborhood
import test_query_and_attend
import test_slide
import test_sparse_scan
import test_stand_alone
import torch
from contract import DTYPES, Case, relative_error
from emulator import Emulator, asan_env, build_library, kernel_names
from torch import Tensor


class Emulated:
    """Makes a contract's checks of a kernel call the emulated one.

    Attributes:
        saved_outputs: What backward gets of what forward returns.
    """

    saved_outputs = slice(None)

    def run(self, tensors: tuple[Tensor, ...], case: Case, grad_output: Tensor) -> list[Tensor]:
        args = self.op_args(tensors, case)
        inputs = [arg for arg in args if arg is None or isinstance(arg, Tensor)]
        library = torch.ops.mmlocalattn_emulated
        outputs = getattr(library, self.op_name)(*args)
        backward = getattr(library, f'_{self.op_name}_backward')
        saved = outputs[self.saved_outputs]
        grads = backward(grad_output, *inputs, *saved, *args[len(inputs) :])
        return [outputs[0], *(grad for grad, arg in zip(grads, inputs) if arg is not None)]


class NeighborhoodAttention(Emulated, test_neighborhood.TestNeighborhoodAttention):
    pass


class SparseScanAttention(Emulated, test_sparse_scan.TestSparseScanAttention):
    pass


class SlideAttention(Emulated, test_slide.TestSlideAttention):
    saved_outputs = slice(1, None)


class QueryAndAttend(Emulated, test_query_and_attend.TestQueryAndAttend):
    saved_outputs = slice(1, None)


class StandAloneAttention(Emulated, test_stand_alone.TestStandAloneAttention):
    saved_outputs = slice(1, None)


CONTRACTS = (
    NeighborhoodAttention(),
    SparseScanAttention(),
    SlideAttention(),
    QueryAndAttend(),
    StandAloneAttention(),
)
PROBLEMS = [
    pytest.param(contract, case, dtype, id=f'{contract.op_name}-{case}-{dtype}')
    for contract in CONTRACTS
    for case in contract.cases | contract.cuda_cases
    for dtype in DTYPES
    if dtype != torch.float64 or case in contract.cases  # float64 has one kernel, and is slow
]


@functools.cache
def check(contract: Any, case: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)  # whichever test comes first
    problem = (contract.cases | contract.cuda_cases)[case]
    contract.check_kernel(problem, dtype)


@pytest.mark.parametrize(('contract', 'case', 'dtype'), PROBLEMS)
def test_kernel_is_reference(
    contract: Any, case: str, dtype: torch.dtype, emulator: Emulator
) -> None:
    check(contract, case, dtype)


def test_every_kernel_has_run(emulator: Emulator) -> None:
    for problem in PROBLEMS:
        check(*problem.values)
    launched = emulator.launched()
    assert launched == set(emulator.kernels.values())
    assert {name.partition('<')[0] for name in launched} == set(kernel_names())


@pytest.mark.parametrize('contract', CONTRACTS, ids=lambda contract: contract.op_name)
def test_strided_inputs(contract: Any, emulator: Emulator) -> None:
    contract.check_kernel(contract.cuda_cases['dim32'], torch.float32, 'strided')


def parts_of_a_projection(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.stack(tensors, 3).unbind(3)


def unaligned(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(
        tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)
        for tensor in tensors
    )


@pytest.mark.parametrize('layout', [parts_of_a_projection, unaligned])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('contract', CONTRACTS, ids=lambda contract: contract.op_name)
def test_layout_does_not_matter(
    contract: Any, dtype: torch.dtype, layout: Any, emulator: Emulator
) -> None:
    for case in [contract.cases[name] for name in contract.cases if name.startswith('dim32')][:2]:
        tensors = contract.tensors(case, dtype)
        grad_output = torch.randn_like(tensors[0])
        expected = contract.run(tensors, case, grad_output)
        actual = contract.run(layout(tensors), case, grad_output)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(actual, expected))


@pytest.mark.parametrize('contract', CONTRACTS, ids=lambda contract: contract.op_name)
def test_empty_batch(contract: Any, emulator: Emulator) -> None:
    contract.test_empty_batch()


def test_head_dim_of_stand_alone_attention(emulator: Emulator) -> None:
    """The lanes of a warp share the channels of a position."""
    contract = StandAloneAttention()
    contract.check_kernel(
        test_stand_alone.case((1, 2, 3, 1, 256), (3, 3), scale=0.05), torch.float32
    )
    case = test_stand_alone.case((1, 2, 3, 1, 257), (3, 3))
    tensors = contract.tensors(case, torch.float32)
    message = 'head_dim must be at most 256 on CUDA, got 257: use more heads'
    with pytest.raises(RuntimeError, match=message):
        contract.run(tensors, case, tensors[0])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_large_logits_do_not_overflow(dtype: torch.dtype, emulator: Emulator) -> None:
    contract, (query, key, value) = CONTRACTS[0], torch.randn(3, 1, 6, 7, 1, 32, dtype=dtype)
    case = test_neighborhood.case(query.shape, (5, 3))
    tensors = (query * 300, key, value)
    output, *grads = contract.run(tensors, case, torch.ones_like(query))
    exact = tuple(tensor.double() for tensor in tensors)
    expected = contract.reference(*contract.op_args(exact, case))[0]
    assert relative_error(output, expected) < 4 * torch.finfo(dtype).eps
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_nan_is_not_swallowed(dtype: torch.dtype, emulator: Emulator) -> None:
    contract, (query, key, value) = CONTRACTS[0], torch.randn(3, 1, 6, 7, 1, 32, dtype=dtype)
    query[0, 0, 0] = float('nan')
    output = contract.run((query, key, value), dict(contract.cases['k3']), value)[0]
    assert output[0, 0, 0].isnan().all()
    assert output[0, 1:].isfinite().all()


def test_address_sanitizer() -> None:
    """A part of the problems in a process of its own, whose first library is the sanitizer's."""
    build_library('asan')
    command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', __file__]
    result = subprocess.run(
        [
            *command,
            '-k',
            'kernel_is_reference and (bfloat16 or float32) and not (map or tall or wide)',
        ],
        capture_output=True,
        text=True,
        env=asan_env() | {'MMLOCALATTN_EMULATION': 'asan'},
        cwd=os.path.dirname(__file__),
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-8000:]
    assert ' passed' in result.stdout
