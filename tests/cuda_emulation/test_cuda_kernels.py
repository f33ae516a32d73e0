"""The CUDA kernels' own source, run on the CPU, against the references.

Logic only: what a GPU compiles and how fast it is, the tests marked `cuda` and the benchmark show.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import test_neighborhood
import test_query_and_attend
import test_slide
import test_sparse_scan
import test_stand_alone
import torch
from contract import CUDA_LAYOUTS, DTYPES, Case, relative_error
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


STEEP_PROBLEMS = [
    pytest.param(contract, case, id=f'{contract.op_name}-{case}')
    for contract in CONTRACTS
    for case in contract.steep_cases
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
    launched = set(+emulator.launches())
    assert launched == set(emulator.kernels.values())
    assert {name.partition('<')[0] for name in launched} == set(kernel_names())


@pytest.mark.parametrize('layout', CUDA_LAYOUTS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('contract', CONTRACTS, ids=lambda contract: contract.op_name)
def test_layout_does_not_matter(
    contract: Any, dtype: torch.dtype, layout: str, emulator: Emulator
) -> None:
    place = CUDA_LAYOUTS[layout]
    for name in ('dim32', next(iter(contract.cases))):
        case = (contract.cases | contract.cuda_cases)[name]
        tensors = contract.tensors(case, dtype)
        grad_output = torch.randn(contract.output_shape(tensors, case), dtype=dtype)
        expected = contract.run(tensors, case, grad_output)
        actual = contract.run(tuple(place(tensor) for tensor in tensors), case, place(grad_output))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(actual, expected))


@pytest.fixture
def garbage() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('contract', CONTRACTS, ids=lambda contract: contract.op_name)
@pytest.mark.needs_torch('2.2', 'filling memory that nobody wrote')
def test_empty_batch(contract: Any, emulator: Emulator, garbage: None) -> None:
    contract.test_empty_batch()


@pytest.mark.needs_torch('2.2', 'filling memory that nobody wrote')
@pytest.mark.parametrize('head_dim', [4, 32])
@pytest.mark.parametrize(('batch', 'heads'), [(0, 2), (1, 0)])
def test_bias_has_no_gradient_from_empty_maps(
    batch: int, heads: int, head_dim: int, emulator: Emulator, garbage: None
) -> None:
    contract = NeighborhoodAttention()
    case = test_neighborhood.case((batch, 5, 7, heads, head_dim), (3, 3), bias=True)
    tensors = contract.tensors(case, torch.float32)
    *_, grad_bias = contract.run(tensors, case, torch.zeros(case['shape']))
    assert torch.equal(grad_bias, torch.zeros(heads, 5, 5))


@pytest.mark.parametrize(
    ('case', 'dtype'),
    [
        (test_query_and_attend.case((1, 20, 18, 2, 1), 8, (13, 13)), torch.float64),
        (test_query_and_attend.case((1, 9, 17, 60, 1), 8, (3, 3)), torch.float32),
    ],
    ids=['k13', 'many_queries'],
)
def test_query_and_attend_fits_into_shared_memory(
    case: dict, dtype: torch.dtype, emulator: Emulator
) -> None:
    """Of every GPU: the emulator has what the smallest of them has."""
    QueryAndAttend().check_kernel(case, dtype)


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


@pytest.mark.parametrize(('contract', 'case'), STEEP_PROBLEMS)
def test_gradients_of_large_logits(contract: Any, case: str, emulator: Emulator) -> None:
    torch.manual_seed(0)
    contract.check_large_logits(contract.steep_cases[case])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_nan_is_not_swallowed(dtype: torch.dtype, emulator: Emulator) -> None:
    contract, (query, key, value) = CONTRACTS[0], torch.randn(3, 1, 6, 7, 1, 32, dtype=dtype)
    query[0, 0, 0] = float('nan')
    output = contract.run((query, key, value), dict(contract.cases['k3']), value)[0]
    assert output[0, 0, 0].isnan().all()
    assert output[0, 1:].isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_infinite_values_stay_near(dtype: torch.dtype, emulator: Emulator) -> None:
    """They reach the queries that see them, and few others, see neighborhood_attention."""
    query, key, value = torch.randn(3, 1, 12, 40, 1, 32, dtype=dtype)
    value[0, 6, 3] = float('inf')
    case = test_neighborhood.case(query.shape, (3, 3))
    args = CONTRACTS[0].op_args((query, key, value), case)
    is_finite = torch.ops.mmlocalattn_emulated.neighborhood_attention(*args)[0].isfinite()
    assert not is_finite[0, 5:8, 2:5].any()
    assert is_finite[0, :, 24:].all()


def test_launches_of_a_whole_scan(emulator: Emulator) -> None:
    contract = SparseScanAttention()
    case = contract.cuda_cases['dim32_rotary']
    tensors = contract.tensors(case, torch.bfloat16)
    args = contract.op_args(tensors, case)
    before = emulator.launches()
    outputs = torch.ops.mmlocalattn_emulated.sparse_scan_attention(*args)
    forward = emulator.launches()
    backward = torch.ops.mmlocalattn_emulated._sparse_scan_attention_backward
    backward(tensors[0], *args[:5], *outputs, *args[5:])
    assert sum((forward - before).values()) == 3
    assert sum((emulator.launches() - forward).values()) == 5


def test_address_sanitizer() -> None:
    """A part of the problems, and other layouts, with another build in a process of its own."""
    build_library('asan')
    problems = 'kernel_is_reference and (bfloat16 or float32) and not (map or tall or wide)'
    command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', __file__]
    result = subprocess.run(
        [*command, '-k', f'(layout_does_not_matter and not contiguous) or {problems}'],
        capture_output=True,
        text=True,
        env=asan_env() | {'MMLOCALATTN_EMULATION': 'asan'},
        cwd=os.path.dirname(__file__),
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-8000:]
    assert ' passed' in result.stdout
