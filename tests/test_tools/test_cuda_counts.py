"""Counts of compiled CUDA kernels, from what cuobjdump prints."""

import json
from pathlib import Path

import cuda_counts
import pytest
from cuda_counts import DEVICES, Counts

# A loop of two products and a mask that a branch jumps over, then what follows a vote.
SASS = """
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   S2R R1, SR_TID.X ;              /* 0x0000000000017919 */
                                                                   /* 0x000e280000002100 */
        /*0010*/                   STL [R1], R2 ;                  /* 0x0000000000017919 */
        /*0020*/                   HMMA.16816.F32 R4, R8, R2, R4 ; /* 0x0000000000017919 */
        /*0030*/              @P0  BRA 0x60 ;                      /* 0x0000000000017919 */
        /*0040*/                   FSEL R4, R4, -INF , P1 ;        /* 0x0000000000017919 */
        /*0050*/                   FSEL R5, R5, -INF , P1 ;        /* 0x0000000000017919 */
        /*0060*/                   VOTE.ANY P1, P1 ;               /* 0x0000000000017919 */
        /*0070*/              @!P1 BRA 0xa0 ;                      /* 0x0000000000017919 */
        /*0080*/                   FMUL R4, R4, R6 ;               /* 0x0000000000017919 */
        /*0090*/                   FMUL R5, R5, R6 ;               /* 0x0000000000017919 */
        /*00a0*/                   HMMA.16816.F32 R4, R8, R2, R4 ; /* 0x0000000000017919 */
        /*00b0*/              @!P2 BRA 0x20 ;                      /* 0x0000000000017919 */
        /*00c0*/                   EXIT ;                          /* 0x0000000000017919 */
        /*00d0*/                   BRA 0xd0;                       /* 0x0000000000017919 */
"""
KERNEL = 'neighborhood::tiled_kernel<BFloat16, 32, false>'
COUNTS = Counts(threads=256, registers=80, spills=1, shared=0, products=8, fewest=68, most=89)


def test_main_loop() -> None:
    code = cuda_counts.instructions(SASS)
    assert [instruction.name.partition('.')[0] for instruction in code[:3]] == [
        'S2R',
        'STL',
        'HMMA',
    ]
    assert cuda_counts.main_loop(code) == (2, 6, 8)
    assert cuda_counts.main_loop(code[:2]) == (0, 0, 0)


def test_short_name() -> None:
    name = 'void mmlocalattn::cuda::slide::(anonymous namespace)::kernel<c10::Half, 3>(int)'
    assert cuda_counts.short_name(name) == 'slide::kernel<Half, 3>'


@pytest.mark.parametrize(
    ('device', 'threads', 'registers', 'shared', 'blocks'),
    [
        (90, 256, 80, 0, 3),  # registers
        (90, 256, 32, 0, 8),  # warps
        (86, 256, 32, 48 << 10, 2),  # shared memory
        (90, 32, 16, 0, 32),  # blocks
        (80, 128, 168, 0, 3),
    ],
)
def test_resident_blocks(
    device: int, threads: int, registers: int, shared: int, blocks: int
) -> None:
    assert DEVICES[device].resident_blocks(threads, registers, shared) == blocks


def test_code_serves_newer_devices_of_its_generation() -> None:
    assert cuda_counts.occupancy({80: COUNTS, 90: COUNTS}).keys() == {80, 86, 89, 90}


@pytest.mark.parametrize(
    ('now', 'complaint'),
    [
        ({}, None),
        (dict(most=90), None),  # another version of nvcc
        (dict(registers=72, most=80, spills=0), None),
        (dict(most=99), 'sm_90: 99 instructions in the main loop, expected 89'),
        (dict(spills=2), 'sm_90: 2 spills, expected 1'),
        (dict(registers=96), 'sm_90: 2 blocks, expected 3'),
        (dict(products=0), 'sm_90: no main loop, expected 89 instructions'),
    ],
)
def test_complaints(now: dict, complaint: str | None, tmp_path: Path) -> None:
    path = tmp_path / 'figures.json'
    cuda_counts.write_figures(path, cuda_counts.as_figures({KERNEL: {90: COUNTS}}))
    figures = json.loads(path.read_text())
    counts = Counts(**(vars(COUNTS) | now))
    found = cuda_counts.complaints({KERNEL: {90: counts}}, figures)
    assert found == ([] if complaint is None else [f'{KERNEL} {complaint}'])
    for gone in ({}, {KERNEL: {120: counts}}):
        assert cuda_counts.complaints(gone, figures) == [f'{KERNEL} is expected, but gone']


def test_figures_of_other_kernels_stay() -> None:
    figures = {KERNEL: {'80': [1], '90': [2]}, 'slide::kernel': {'80': [3]}}
    expected = figures | {KERNEL: {'80': [1], '90': [4]}}
    assert cuda_counts.merged(figures, {KERNEL: {'90': [4]}}) == expected
