"""Running the project's tools step by step, with records of what is done, for long benchmarks."""

import functools
import importlib
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from mmlocalattn.export.certificate import cpu_name
from mmlocalattn.files import write_json

TOOLS = Path(__file__).parents[2]
MATRIX = 1024


class Records:
    """What was measured, by name, in a JSON file that is written after every step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def of(self, name: str) -> dict[str, Any]:
        return self.content.setdefault(name, {})

    def save(self) -> None:
        write_json(self.path, self.content)


class StepFailed(ValueError):
    """A command did not end well; holds its last line."""


def run_tool(threads: int, log: Path, tool: str, *options: object) -> dict[str, float]:
    """Run a tool; gives its seconds, those of the processor, and the peak of its memory.

    In a copy of this process, in which the packages are imported already.

    Raises:
        StepFailed: If it fails, with its last line.
    """
    main = _main_of(tool)
    begin = time.monotonic()
    child = os.fork()
    if not child:
        _in_child(main, log, [str(option) for option in options], threads)
    try:
        _, status, usage = os.wait4(child, 0)
    except BaseException:  # Ctrl-C too, which only the terminal sends to the child as well
        os.kill(child, signal.SIGTERM)
        raise
    if status:
        lines = log.read_text().strip().splitlines() or ['']
        raise StepFailed(f'{tool}: {lines[-1]} ({log})')
    return {
        'seconds': time.monotonic() - begin,
        'cpu_seconds': usage.ru_utime + usage.ru_stime,
        'peak_bytes': 1024 * usage.ru_maxrss,
    }


@functools.cache
def _main_of(tool: str) -> Callable[[list[str]], None]:
    """What a tool does with arguments; all that it needs is imported."""
    for package in ('mmdet.apis', 'mmdet.models', 'mmdet.datasets', 'mmlocalattn.export'):
        importlib.import_module(package)
    spec = importlib.util.spec_from_file_location(f'tools_{tool[:-3]}', TOOLS / tool)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def _in_child(
    main: Callable[[list[str]], None], log: Path, options: list[str], threads: int
) -> NoReturn:
    """Run a tool, with all that it prints in a file, and end this process as it would."""
    with open(log, 'w') as file:
        os.dup2(file.fileno(), 1)  # of what is not Python
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # that the tool handles in its own way
        status = 1
        try:
            torch.set_num_threads(threads)
            main(options)
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            if isinstance(stop.code, str):
                print(stop.code)
        except BaseException:
            traceback.print_exc()
        finally:
            file.flush()
            os._exit(status)


def machine_line() -> str:
    """The processor, and what one thread of it does in a matrix product."""
    a, b = torch.randn(2, MATRIX, MATRIX)
    torch.set_num_threads(1)
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - begin)
    gflops = 2e-9 * MATRIX**3 / min(times)
    return f'{cpu_name()}; {gflops:.0f} GFLOP/s in a matrix product of {MATRIX}, one thread'
