"""What bench_cpp.py measures: the program of examples/cpp and PyTorch, each in a process."""

import argparse
import multiprocessing
import re
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from mmlocalattn.memory import keep_freed_memory
from mmlocalattn.tables import markdown_table

_TIMES = re.compile(
    r'median of \d+ runs ([\d.]+) ms, best ([\d.]+) ms, processor time ([\d.]+) ms, '
    r'peak memory (\d+) MiB'
)
Round = dict[str, float]


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Records of both, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / 'image.ppm'
        pixels = np.random.default_rng(0).integers(0, 256, (*args.size, 3), np.uint8)
        cv2.imwrite(str(image), cv2.resize(pixels[::16, ::16], args.size[::-1]))
        file = args.file or Path(folder) / 'model.pt'
        if not file.exists():
            in_process(_export, args, file)
        rounds: dict[str, list[Round]] = {'PyTorch': [], 'C++': []}
        for _ in range(args.rounds):
            rounds['PyTorch'].append(in_process(_eager, args, image))
            rounds['C++'].append(
                run_program(command_of(args.detect, args.threads), file, image, args.repeat)
            )
    return [{'name': name, **_summary(several)} for name, several in rounds.items()]


def in_process(function: Any, *inputs: object) -> Any:
    """What a function gives in a new process."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(function, inputs)


def command_of(program: Path, threads: int) -> list[str]:
    """The program with the operators of this package.

    Raises:
        FileNotFoundError: If one of them is not there.
    """
    extension = find_spec('mmlocalattn._ext')
    if extension is None or extension.origin is None:
        raise FileNotFoundError('the operators are not compiled: mmlocalattn._ext is not there')
    if not program.is_file():
        raise FileNotFoundError(f'--detect {program}: there is no such program; see docs/deploy.md')
    return [str(program), '--operators', extension.origin, '--threads', str(threads)]


def output_of(command: Sequence[object]) -> list[str]:
    """The lines that a program prints.

    Raises:
        ValueError: If it fails; with its reason.
    """
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f'{command[0]}: {done.stderr.strip()}')
    return done.stdout.splitlines()


def run_program(command: Sequence[str], file: Path, image: Path, repeat: int) -> Round:
    """Milliseconds of the median, the best and of the processor, and MiB at the peak."""
    line = output_of([*command, '--score', 1, '--repeat', repeat, file, image])[-1]
    found = _TIMES.match(line)
    if found is None:
        raise ValueError(f'{command[0]} printed {line!r}, not its times')
    names = ('median', 'best', 'processor', 'peak_mib')
    return dict(zip(names, map(float, found.groups())))


def _module(args: argparse.Namespace) -> tuple[Any, Any]:
    """The config and the module, always with the same weights."""
    from mmlocalattn.export import build_exportable
    from mmlocalattn.training import config_of

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cfg = config_of(args)
    return cfg, build_exportable(cfg)


def _export(args: argparse.Namespace, file: Path) -> None:
    from mmlocalattn.export import describe, export

    cfg, module = _module(args)
    meta = describe(cfg, 'model', [args.size], 'torchscript', module)
    export(module, file, 'torchscript', [args.size], meta)


def _eager(args: argparse.Namespace, image: Path) -> Round:
    keep_freed_memory()
    cfg, module = _module(args)
    node = cfg.model.get('data_preprocessor') or {}
    bgr = np.asarray(cv2.imread(str(image)), np.uint8)
    pixels = torch.from_numpy(bgr[..., ::-1].copy()).permute(2, 0, 1)[None]
    mean, std = (torch.tensor(node[key]).view(1, -1, 1, 1) for key in ('mean', 'std'))
    batch = (pixels.float() - mean) / std
    seconds = []
    with torch.inference_mode():
        module(batch)
        cpu = time.process_time()
        for _ in range(args.repeat):
            begin = time.perf_counter()
            module(batch)
            seconds.append(time.perf_counter() - begin)
        cpu = time.process_time() - cpu
    return {
        'median': 1e3 * statistics.median(seconds),
        'best': 1e3 * min(seconds),
        'processor': 1e3 * cpu / args.repeat,
        'peak_mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _summary(rounds: list[Round]) -> dict[str, Any]:
    """Medians over rounds, of the best the best."""
    choices = {'best': min, 'peak_mib': max}
    summary = {
        name: choices.get(name, statistics.median)(one[name] for one in rounds)
        for name in rounds[0]
    }
    return {**summary, 'rounds': rounds}


def print_records(records: list[dict[str, Any]]) -> None:
    """A table of both."""
    rows = [
        [
            record['name'],
            *(f'{record[key]:.0f}' for key in ('median', 'best', 'processor')),
            f'{record["peak_mib"]:.0f} MiB',
        ]
        for record in records
    ]
    print(markdown_table(('', 'ms, median', 'best', 'processor', 'peak of the process'), rows))
