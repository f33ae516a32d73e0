"""The CUDA kernels' own source, run on the CPU, against the references.

Logic only: what a GPU compiles and how fast it is, the tests marked `cuda` and the benchmark show.
"""

import functools
import os
import subprocess
import sys
from typing import Any, ClassVar

import pytest
import test_neighborhood
import test_sparse_scan
import torch
from contract import DTYPES, Case, relative_error
from emulator import Emulator, asan_env, build_library, kernel_names
from torch import Tensor


class Emulated:
    """Makes a contract's checks of a kernel call the emulated one."""

    def run(self, tensors: tuple[Tensor, ...], case: Case, grad_output: Tensor) -> list[Tensor]:
        args = self.op_args(tensors, case)
        inputs = [arg for arg in args if arg is None or isinstance(arg, Tensor)]
        library = torch.ops.mmlocalattn_emulated
        outputs = getattr(library, self.op_name)(*args)
        backward = getattr(library, f'_{self.op_name}_backward')
        grads = backward(grad_output, *inputs, *outputs, *args[len(inputs) :])
        return [outputs[0], *grads[: len(tensors)]]


class NeighborhoodAttention(Emulated, test_neighborhood.TestNeighborhoodAttention):
    tiles: ClassVar[dict[str, Case]] = {
        'dim16': test_neighborhood.case((2, 9, 11, 2, 16), (3, 3)),
        'dim32': test_neighborhood.case((1, 11, 13, 2, 32), (7, 5)),
        'dim64': test_neighborhood.case((1, 7, 13, 1, 64), (5, 7)),
        'dim128': test_neighborhood.case((1, 9, 8, 1, 128), (7, 3)),
        'dim16_dilated': test_neighborhood.case((1, 17, 13, 1, 16), (5, 3), (3, 2)),
        'dim32_dilated': test_neighborhood.case((1, 13, 20, 1, 32), (3, 5), (4, 3)),
        'dim64_dilated': test_neighborhood.case((1, 8, 9, 1, 64), (3, 3), (2, 3)),
        'dim128_dilated': test_neighborhood.case((1, 7, 11, 1, 128), (3, 5), (2, 2)),
        'dim32_bias': test_neighborhood.case((1, 7, 9, 2, 32), (5, 3), (1, 2), bias=True),
        'dim32_negative_scale': test_neighborhood.case((1, 5, 6, 1, 32), (3, 3), scale=-0.2),
        'dim16_window_is_map': test_neighborhood.case((1, 17, 19, 1, 16), (17, 19)),
        'dim32_wide': test_neighborhood.case((1, 3, 70, 1, 32), (1, 69)),
        'dim32_tall': test_neighborhood.case((1, 70, 3, 1, 32), (23, 1), (3, 1)),
    }
    cases = test_neighborhood.TestNeighborhoodAttention.cases | tiles


class SparseScanAttention(Emulated, test_sparse_scan.TestSparseScanAttention):
    tiles: ClassVar[dict[str, Case]] = {
        'dim16_rotary': test_sparse_scan.case((2, 9, 8, 2, 16), (5, 3), (3, 3), (2, 2), True),
        'dim32_rotary': test_sparse_scan.case((1, 10, 13, 2, 32), (3, 3), (3, 5), (3, 2), True),
        'dim64': test_sparse_scan.case((1, 7, 9, 1, 64), (3, 3), (3, 3), (2, 3)),
        'dim128_rotary': test_sparse_scan.case((1, 6, 7, 1, 128), (3, 5), (3, 3), (2, 2), True),
        'dim32_no_local': test_sparse_scan.case((1, 7, 9, 2, 32), (1, 1), (3, 3), (2, 3), True),
        'dim32_no_anchors': test_sparse_scan.case((1, 7, 5, 2, 32), (5, 3), (1, 1), (1, 1), True),
    }
    cases = test_sparse_scan.TestSparseScanAttention.cases | tiles


CONTRACTS = (NeighborhoodAttention(), SparseScanAttention())
PROBLEMS = [
    pytest.param(contract, case, dtype, id=f'{contract.op_name}-{case}-{dtype}')
    for contract in CONTRACTS
    for case in contract.cases
    for dtype in DTYPES
    if dtype != torch.float64 or case not in contract.tiles  # float64 has no tiles, and is slow
]


@functools.cache
def check(contract: Any, case: str, dtype: torch.dtype) -> None:
    contract.check_kernel(case, dtype, contiguous=True, device='cpu')


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
    contract.check_kernel(next(iter(contract.cases)), torch.float32, False, 'cpu')


@pytest.mark.parametrize('contract', CONTRACTS, ids=lambda contract: contract.op_name)
def test_empty_batch(contract: Any, emulator: Emulator) -> None:
    contract.test_empty_batch()


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
        [*command, '-k', 'kernel_is_reference and not float64 and dim'],
        capture_output=True,
        text=True,
        env=asan_env() | {'MMLOCALATTN_EMULATION': 'asan', 'PYTHONMALLOC': 'malloc'},
        cwd=os.path.dirname(__file__),
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-8000:]
    assert ' passed' in result.stdout
