"""What the benchmarks share: timing in turns, peak memory, a JSON file."""

import argparse
import ctypes
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mmlocalattn import __version__
from mmlocalattn.files import write_json
from mmlocalattn.memory import keep_freed_memory
from mmlocalattn.ops import OPS, has_kernel

BLOCK_SECONDS = 0.02
"""Shorter calls are repeated within a round until they have filled this time."""
SLOW_SECONDS = 5.0
"""A call that takes longer is timed once."""

LIMITS = (
    'ATEN_CPU_CAPABILITY',
    'MKL_ENABLE_INSTRUCTIONS',
    'MMLOCALATTN_CPU_ISA',
    'ONEDNN_MAX_CPU_ISA',
)
"""Environment variables that hold libraries to an older instruction set."""

Run = Callable[[], object]


def time_in_turns(
    runs: Sequence[Run], device: torch.device, rounds: int, slow: float = SLOW_SECONDS
) -> list[list[float]]:
    """Seconds of a call of each run, by round.

    Every round times every run, so that a slow moment of the machine hits all of them. Before,
    each is called once: compilation, caches, memory pools. What takes ``slow`` seconds is timed
    once.
    """
    calls = []
    samples: list[list[float]] = []
    for run in runs:
        run()
        first = _seconds(run, device, 1)
        calls.append(max(1, min(1000, math.ceil(BLOCK_SECONDS / first))))
        samples.append([first] if first > slow else [])
    quick = [index for index, known in enumerate(samples) if not known]
    for _ in range(rounds):
        for index in quick:
            samples[index].append(_seconds(runs[index], device, calls[index]))
    return samples


def time_after_settling(
    runs: Sequence[Run], device: torch.device, rounds: int
) -> list[list[float]]:
    """As :func:`time_in_turns`, of runs that change the state of the process.

    Before every call that is timed, the same is called once untimed.
    """
    samples: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, seconds in zip(runs, samples):
            run()
            seconds.append(_seconds(run, device, 1))
    return samples


def _seconds(run: Run, device: torch.device, calls: int) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def replay_of(run: Run, device: torch.device) -> Run | None:
    """What a call launches on a GPU, recorded once: a CUDA graph, without the host's part.

    Args:
        run: Was called before, so that what happens once has happened.
        device: None is the answer for one that has no graphs.

    Raises:
        RuntimeError: If the call cannot be recorded, as it waits for the GPU.
    """
    if device.type != 'cuda':
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # where a graph is recorded, memory pools and handles are new
        run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph.replay


def peak_memory(run: Run, device: torch.device) -> int | None:
    """Bytes that a call needs on top of what is in use before it.

    On the CPU this is the high-water mark of the resident set, so it holds the scratch memory of
    kernels too. Linux keeps it; elsewhere the answer is None.
    """
    if device.type == 'cuda':
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    clear_refs = Path('/proc/self/clear_refs')
    if not clear_refs.exists():
        return None
    if platform.libc_ver()[0] == 'glibc':
        ctypes.CDLL(None).malloc_trim(0)  # else the call could reuse freed memory unseen
    clear_refs.write_text('5')  # lowers the mark to what is resident now
    before = _high_water_mark()
    run()
    return _high_water_mark() - before


def with_freed_memory(run: Run, kept: bool) -> Run:
    """A run whose freed memory the process keeps, or that gives it back as glibc does by itself.

    glibc's own limits grow to these once a process has freed large maps. What was kept is given
    back once, in the first call after another policy.
    """
    if platform.libc_ver()[0] != 'glibc':
        return run
    libc = ctypes.CDLL(None)

    def wrapped() -> object:
        if kept:
            keep_freed_memory()
        elif libc.mallopt(-4, 65536) and _policy.get('kept') is not False:  # M_MMAP_MAX
            libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD
            libc.malloc_trim(0)
        _policy['kept'] = kept
        return run()

    return wrapped


_policy: dict[str, bool] = {}  # of the process


def _high_water_mark() -> int:
    return _kibibytes('/proc/self/status', 'VmHWM')


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on the device; None if unknown."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    return _kibibytes('/proc/meminfo', 'MemAvailable') if Path('/proc/meminfo').exists() else None


def _kibibytes(file: str, key: str) -> int:
    """The bytes on the line ``<key>: <number> kB`` of a file of /proc."""
    lines = Path(file).read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f'{key}:'))


def environment(device: torch.device) -> dict:
    """What a measurement depends on besides its arguments."""
    on_gpu = device.type == 'cuda'
    return {
        'versions': {'mmlocalattn': __version__, 'torch': torch.__version__},
        'device': torch.cuda.get_device_name(device) if on_gpu else platform.processor() or 'cpu',
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'limits': {name: os.environ[name] for name in LIMITS if name in os.environ},
        'threads': torch.get_num_threads(),
        'float32_matmul_precision': torch.get_float32_matmul_precision(),
        'compiled_kernels': [name for name in OPS if has_kernel(name, device.type)],
    }


def write_results(args: argparse.Namespace, setting: dict, records: list[dict]) -> None:
    """Write what was measured, where and with which arguments, to the file ``args.out``, if any."""
    if args.out:
        arguments = {key: str(value) for key, value in vars(args).items()}
        write_json(args.out, setting | {'arguments': arguments, 'results': records})
        print(args.out)
