"""What the tiled CUDA kernels of neighborhood attention are launched with, enumerated."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / 'mmlocalattn' / 'csrc'
FIELDS = (
    *('cols', 'cols_log2', 'warps_across', 'warps_down', 'tiles_y', 'tiles_x', 'stage_tokens'),
    *('table_offset', 'warp_offset', 'warp_bytes', 'blocks', 'threads', 'shared_bytes'),
)
SOURCE = """\
#include "cuda/neighborhood/tiling.h"

using namespace mmlocalattn;

// problem: height, width, heads, kernel, dilation. demand: as Demand. device: as Device.
extern "C" void choose(const int* problem, const int* demand, const int* device, int* result) {
  using namespace cuda::neighborhood;
  const auto axis = [&](int i) { return WindowAxis{problem[i], problem[3], problem[4]}; };
  const Launch launch =
      TilingChoice(axis(0), axis(1), 1, problem[2],
                   {demand[0], demand[1], demand[2], demand[3], demand[4], demand[5] != 0},
                   {device[0], device[1]})
          .best();
  const Tiling& tiling = launch.tiling;
  const int fields[] = {tiling.cols, tiling.cols_log2, tiling.warps_across, tiling.warps_down,
                        tiling.tiles_y, tiling.tiles_x, tiling.stage_tokens, tiling.table_offset,
                        tiling.warp_offset, tiling.warp_bytes, static_cast<int>(launch.blocks),
                        launch.threads, launch.shared_bytes};
  for (int field : fields) {
    *result++ = field;
  }
}
"""
# Token, table and warp bytes, warps of a block and of a multiprocessor, is_inverse, as tile.cuh has
# them for head_dim 32 and 16 bits, and for its widest and hungriest kernels.
FORWARD = (144, 0, 0, 8, 24, 0)
DEMANDS = {
    'dim32': FORWARD,
    'dim32 keys': (144, 0, 0, 8, 16, 1),
    'dim32 bias gradient': (144, 944, 1776, 8, 16, 0),
    'dim32 large bias gradient': (144, 16640, 17472, 8, 16, 0),
    'dim64 keys': (272, 0, 0, 4, 12, 1),
    'dim128': (528, 0, 0, 4, 8, 0),
    'dim128 keys': (528, 0, 4352, 4, 8, 1),
    'dim128 float bias gradient': (1040, 16640, 34368, 4, 8, 0),
}
H100 = (132, 228 << 10)
DEVICES = {'A100': (108, 164 << 10), 'RTX 4090': (128, 100 << 10), 'H100': H100}


@pytest.fixture(scope='module')
def choose(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, int]]:
    """Calls the C++ choice."""
    compiler = shutil.which('g++')
    if compiler is None:
        pytest.skip('there is no g++ to compile the choice of a tiling')
    folder = tmp_path_factory.mktemp('tiling')
    (folder / 'choose.cpp').write_text(SOURCE)
    command = [compiler, '-std=c++17', '-O1', '-Wall', '-Werror', '-shared', '-fPIC']
    command += [f'-I{CSRC}', 'choose.cpp', '-o', 'choose.so']
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / 'choose.so'))

    def call(problem: tuple, demand: tuple = FORWARD, device: tuple = H100) -> dict[str, int]:
        result = (ctypes.c_int * len(FIELDS))()
        arrays = [(ctypes.c_int * len(numbers))(*numbers) for numbers in (problem, demand, device)]
        library.choose(*arrays, result)
        return dict(zip(FIELDS, result))

    return call


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Axis:
    """One axis of a dilation group."""

    length: int
    kernel: int

    def partners(self, first: int, count: int) -> range:
        """Keys that `count` queries from `first` on see."""

        def start(position: int) -> int:
            return max(0, min(position - self.kernel // 2, self.length - self.kernel))

        if first >= self.length:
            return range(0)
        return range(start(first), start(min(first + count, self.length) - 1) + self.kernel)


def common(a: range, b: range) -> range:
    return range(max(a.start, b.start), min(a.stop, b.stop))


def products_of_stages(
    launch: dict[str, int], rows: Axis, cols: Axis, y: int, x: int
) -> list[list[int]]:
    """What each warp of the block whose tokens begin at y, x multiplies, stage by stage."""
    own_rows, own_cols = 16 // launch['cols'], launch['cols']
    down, across = launch['warps_down'], launch['warps_across']
    block_rows, block_cols = rows.partners(y, own_rows * down), cols.partners(x, own_cols * across)
    chunks = ceil_div(len(block_cols), launch['stage_tokens'])
    step_x = ceil_div(len(block_cols), chunks)
    step_y = launch['stage_tokens'] // step_x
    step_y = ceil_div(len(block_rows), ceil_div(len(block_rows), step_y))
    stages = []
    for row, col in product(block_rows[::step_y], block_cols[::step_x]):
        stage_rows = common(range(row, row + step_y), block_rows)
        stage_cols = common(range(col, col + step_x), block_cols)
        stages.append([])
        for i, j in product(range(down), range(across)):
            warp_rows = rows.partners(y + i * own_rows, own_rows)
            warp_cols = cols.partners(x + j * own_cols, own_cols)
            exists = len(warp_rows) > 0 and len(warp_cols) > 0
            used_cols = ceil_div(len(common(warp_cols, stage_cols)), 16)
            stages[-1].append(exists * len(common(warp_rows, stage_rows)) * used_cols)
    return stages


def busy_warps(launch: dict[str, int], problem: tuple) -> float:
    """Share of the time in which warps multiply, if they wait for each other after each stage."""
    height, width, _, kernel, dilation = problem
    done = waited = 0
    block_rows = 16 // launch['cols'] * launch['warps_down']
    block_cols = launch['cols'] * launch['warps_across']
    for group_y, group_x in product(range(dilation), repeat=2):
        rows = Axis(ceil_div(height - group_y, dilation), kernel)
        cols = Axis(ceil_div(width - group_x, dilation), kernel)
        for y, x in product(range(0, rows.length, block_rows), range(0, cols.length, block_cols)):
            for stage in products_of_stages(launch, rows, cols, y, x):
                done += sum(stage)
                waited += max(stage) * len(stage)
    return done / waited


@pytest.mark.parametrize('heads', [2, 8, 16])
@pytest.mark.parametrize(('height', 'width', 'kernel'), [(50, 84, 7), (25, 42, 3)])
def test_small_maps_fill_the_machine(
    height: int, width: int, kernel: int, heads: int, choose: Callable
) -> None:
    problem = height, width, heads, kernel, 7
    launch = choose(problem)
    assert busy_warps(launch, problem) >= 0.85
    assert launch['blocks'] >= H100[0]


@pytest.mark.parametrize(
    ('problem', 'least'),
    [((200, 334, 2, 29, 6), 0.85), ((200, 334, 2, 7, 1), 0.9), ((100, 167, 4, 15, 6), 0.85)],
    ids=str,
)
def test_large_maps_keep_warps_busy(problem: tuple, least: float, choose: Callable) -> None:
    launch = choose(problem)
    assert busy_warps(launch, problem) >= least
    assert launch['blocks'] >= 2 * H100[0]


@pytest.mark.parametrize('device', DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize('demand', DEMANDS.values(), ids=DEMANDS)
def test_launch_is_possible(demand: tuple, device: tuple, choose: Callable) -> None:
    """What a block asks for is there, and a multiprocessor has room for two blocks."""
    for problem in [(200, 334, 2, 29, 6), (50, 84, 8, 7, 7), (7, 7, 1, 7, 1), (1, 1, 1, 1, 1)]:
        launch = choose(problem, demand, device)
        warps = launch['threads'] // 32
        assert 1 <= warps == launch['warps_across'] * launch['warps_down'] <= demand[3]
        assert launch['cols'] == 1 << launch['cols_log2']
        assert launch['shared_bytes'] == launch['warp_offset'] + warps * demand[2]
        assert launch['stage_tokens'] > 0
        assert launch['table_offset'] % (launch['stage_tokens'] * demand[0]) == 0
        least_bytes = 2 * 16 * demand[0] + demand[1] + demand[2]
        room_for = 2 if 2 * (least_bytes + 1024) <= device[1] else 1
        assert room_for * (launch['shared_bytes'] + 1024) <= device[1]
