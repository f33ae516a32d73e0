"""The emulator does what a GPU does, and reports what kernels must not do."""

import re
import subprocess
import sys
from pathlib import Path

import emulator as emulator_module
import pytest
import torch
from emulator import CSRC, Emulator, asan_env, build_library


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=['half', 'bfloat16'])
@pytest.mark.parametrize('loads', ['mma', 'load_matrix'])
def test_matrix_product(
    loads: str, dtype: torch.dtype, emulator: Emulator, request: pytest.FixtureRequest
) -> None:
    a, b, product = torch.randn(16, 16), torch.randn(16, 8), torch.zeros(16, 8)
    assert not emulator.probe(request.node.callspec.id.replace('-', ' '), a, b, product)
    torch.testing.assert_close(product, a.to(dtype).float() @ b.to(dtype).float())


def test_warp_and_block(emulator: Emulator) -> None:
    numbers, out = torch.arange(64.0), torch.zeros(4)
    assert not emulator.probe('sum', numbers, numbers, out)
    assert out.tolist() == [numbers.sum() + 31, numbers.sum() + 63, 1, 0]


def test_copy(emulator: Emulator) -> None:
    numbers, out = torch.randn(256), torch.ones(256)
    assert not emulator.probe('copy', numbers, numbers, out)
    assert torch.equal(out[:192], numbers[:192])
    assert not out[192:].any()


def test_barriers_order_accesses(emulator: Emulator) -> None:
    numbers, out = torch.randn(64), torch.zeros(64)
    assert not emulator.probe('barriers', numbers, numbers, out)
    assert torch.equal(out, numbers.view(32, 2).flip(1).flatten() + numbers.flip(0))


@pytest.mark.parametrize(
    ('kernel', 'message'),
    [
        ('no_wait', r'race at shared .*: lane 0 copies without a wait, lane 0 reads'),
        ('no_barrier_after_wait', r'race at shared .*: lane 0 reads, lane 1 writes'),
        ('no_block_barrier', r'race at shared .*: lane 31 reads, lane 32 writes'),
        ('no_warp_barrier', r'race at shared .*: lane 1 writes, lane 0 reads'),
        ('no_barrier_between_rounds', r'race at shared .*: lane 31 writes, lane 32 reads'),
        (
            'blocks_write_one_address',
            r'block 1: race at global .*: lane 0 of block 0 writes, lane 0 writes',
        ),
        (
            'diverging_shuffle',
            r'lanes of warp 0 wait in different places: shuffle_xor .* sync_block \(lanes 16',
        ),
        ('early_exit', r'wait in different places: any .* end of the kernel \(lanes 3\)'),
        ('shuffles_of_two_branches', r'shuffle_xor \(lanes 0 .*\) shuffle_xor \(lanes 16'),
        ('calls_of_two_branches', r'shuffle_xor \(lanes 0 .*\) shuffle_xor \(lanes 16'),
        ('barriers_of_two_branches', r'sync_block \(lanes 0 .*\) sync_block \(lanes 16'),
        ('misaligned_copy', 'copy_async_16 of an address that is no multiple of 16'),
        ('copy_to_global', 'copy_async_16 of an address that is not in shared memory'),
    ],
)
def test_reports(kernel: str, message: str, emulator: Emulator) -> None:
    numbers, out = torch.randn(256), torch.zeros(256)
    error = emulator.probe(kernel, numbers, numbers, out, blocks=2)
    assert error.startswith(f'{kernel}_kernel, block '), error
    with pytest.raises(RuntimeError, match=message):
        raise RuntimeError(error)


def test_blocks_that_no_grid_has(emulator: Emulator) -> None:
    """2^32 + 2 of them are not two."""
    numbers, out = torch.arange(64.0), torch.zeros(64)
    error = emulator.probe('sum', numbers, numbers, out, blocks=2**32 + 2)
    assert error.startswith('the batch is too large for one launch on CUDA, 4294967298 blocks')
    assert not out.any()


def test_what_a_warp_does_together_is_volatile() -> None:
    """The compiler may move other assembly into a branch that only some lanes take."""
    source = (CSRC / 'cuda' / 'intrinsics.cuh').read_text()
    instructions = re.findall(r'asm( volatile)?\(\s*"(\w+)\.', source)
    assert {('', 'ex2'), (' volatile', 'mma'), (' volatile', 'ldmatrix')} <= set(instructions)
    assert not [name for kind, name in instructions if name in ('mma', 'ldmatrix') and not kind]


def test_failed_build_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = []

    def ninja_file(build: str) -> str:
        tried.append(build)
        return 'rule fail\n  command = echo reason && false\nbuild all: fail\n'

    monkeypatch.setattr(emulator_module, 'ROOT', tmp_path)
    monkeypatch.setattr(emulator_module, 'ninja_file', ninja_file)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r'does not build:\n(.*\n)*reason'):
            build_library('broken')
    assert tried == ['broken']


def test_address_sanitizer_reports(emulator: Emulator) -> None:
    build_library('asan')
    script = """
import torch
from emulator import Emulator
numbers = torch.zeros(256)
Emulator('asan').probe('past_the_end', numbers, numbers, numbers)
"""
    result = subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        text=True,
        env=asan_env(),
        cwd=Path(__file__).parent,
    )
    assert result.returncode != 0
    assert 'AddressSanitizer: heap-buffer-overflow' in result.stderr
    assert 'past_the_end_kernel' in result.stderr
