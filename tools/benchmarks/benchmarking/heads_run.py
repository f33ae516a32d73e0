"""What bench_heads.py does with each detector: train, export, verify, run in C++, tell."""

import argparse
import functools
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import torch
from mmengine.fileio import load

from benchmarking.cpp import command_of, output_of, run_program
from benchmarking.heads import FAMILIES, SIDE, folder_name, make_config
from mmlocalattn.data.digit_cards import write_digit_cards
from mmlocalattn.export.agreement import match_boxes
from mmlocalattn.export.certificate import cpu_name
from mmlocalattn.export.formats import SUFFIXES
from mmlocalattn.export.run_file import load_file
from mmlocalattn.files import write_json
from mmlocalattn.tables import markdown_table

TOOLS = Path(__file__).parents[2]
IMAGES, VAL_IMAGES = 800, 40
MAX_AP_DROP = 0.01
"""On 24 images the default, 0.001, is a box in the padding that counts as image for the file."""
CPP_IMAGES = 20
CPP_SCORE = 0.3
MATRIX = 1024


class Records:
    """What was measured, by family, in a JSON file that is written after every step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def of(self, family: str) -> dict[str, Any]:
        return self.content.setdefault(family, {'formats': {}})

    def save(self) -> None:
        write_json(self.path, self.content)


class StepFailed(ValueError):
    """A command did not end well; holds its last line."""


def run_family(name: str, records: Records, args: argparse.Namespace) -> bool:
    """Do what is not done yet; gives whether there is a trained model."""
    record, folder = records.of(name), args.work_dir / folder_name(name)
    if 'training' not in record:
        try:
            record['training'] = _train(name, records, args)
        except StepFailed as error:
            print(f'  {error}', flush=True)
            return False
        records.save()
    for file_format in FAMILIES[name].formats:
        if 'certificate' not in record['formats'].get(file_format, {}):
            print(f'{name}: {file_format}', flush=True)
            record['formats'][file_format] = _export(folder, file_format, args)
            records.save()
    traced = record['formats'].get('torchscript', {})
    if args.detect and 'certificate' in traced and 'cpp' not in traced:
        print(f'{name}: C++', flush=True)
        traced['cpp'] = _in_cpp(folder, args)
        records.save()
    return True


def _train(name: str, records: Records, args: argparse.Namespace) -> dict[str, float]:
    """Train a family, and before that the one whose weights it starts from."""
    start, folder = FAMILIES[name].start, args.work_dir / folder_name(name)
    if start is not None and not run_family(start, records, args):
        raise StepFailed(f'{name} starts from {start}')
    data = args.work_dir / 'data'
    if not data.is_dir():
        write_digit_cards(data, IMAGES, VAL_IMAGES, SIDE)
    folder.mkdir(parents=True, exist_ok=True)
    weights = _checkpoint(args.work_dir / folder_name(start)) if start else None
    make_config(name, data.absolute(), weights).dump(folder / 'config.py')
    print(f'{name}: training', flush=True)
    command = (folder / 'config.py', '--work-dir', folder / 'train', '--resume')
    return _run(args, folder / 'train.log', 'train.py', *command)


def _checkpoint(folder: Path) -> Path:
    return Path((folder / 'train' / 'last_checkpoint').read_text().strip())


def _export(folder: Path, file_format: str, args: argparse.Namespace) -> dict[str, Any]:
    """A file and what its certificate says, or why there is none."""
    out = folder / f'model{SUFFIXES[file_format]}'
    log = folder / f'{file_format}.log'
    command = (folder / 'config.py', _checkpoint(folder), '--format', file_format, '--out', out)
    limits = ('--max-ap-drop', MAX_AP_DROP)
    try:
        usage = _run(args, log, 'export.py', *command, *limits)
    except StepFailed as error:
        print(f'  {error}', flush=True)
        return {'refused': str(error)}
    # Not in this process, which is copied again: runtimes start threads, and copies have none.
    with multiprocessing.get_context('fork').Pool(1) as pool:
        return {**usage, 'certificate': pool.apply(_certificate, (out,))}


def _certificate(file: Path) -> dict[str, Any]:
    return load_file(file).meta['certificate']


def _in_cpp(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The boxes of the program of examples/cpp beside those of Python, and its time."""
    file, predictions = folder / 'model.pt', folder / 'predictions.pkl'
    command = (folder / 'config.py', file, '--out', predictions, '--work-dir', folder / 'test')
    _run(args, folder / 'test.log', 'test.py', *command)
    program = command_of(args.detect, args.threads)
    total = alike = 0
    image = folder / 'image.ppm'
    for sample in load(str(predictions))[:CPP_IMAGES]:
        cv2.imwrite(str(image), np.asarray(cv2.imread(sample['img_path']), np.uint8))
        expected = {
            key: value[sample['pred_instances']['scores'] >= CPP_SCORE]
            for key, value in sample['pred_instances'].items()
            if key in ('bboxes', 'scores', 'labels')
        }
        lines = output_of([*program, '--score', CPP_SCORE, file, image])
        found = _parsed(lines)
        alike += 2 * len(match_boxes(expected, found, 0.99))
        total += len(expected['scores']) + len(found['scores'])
    times = run_program(program, file, image, 10)
    return {'images': CPP_IMAGES, 'boxes': total, 'share': alike / max(total, 1), **times}


def _parsed(lines: list[str]) -> dict[str, torch.Tensor]:
    """What the program prints; classes are called by their numbers here."""
    rows = [line.split() for line in lines]
    numbers = torch.tensor([[float(word) for word in row[1:]] for row in rows]).reshape(-1, 5)
    labels = torch.tensor([int(row[0]) for row in rows], dtype=torch.long)
    return {'scores': numbers[:, 0], 'bboxes': numbers[:, 1:], 'labels': labels}


def _run(args: argparse.Namespace, log: Path, tool: str, *options: object) -> dict[str, float]:
    """Run a tool; gives its seconds, those of the processor, and the peak of its memory.

    In a copy of this process, in which the packages are imported already.

    Raises:
        StepFailed: If it fails, with its last line.
    """
    main = _main_of(tool)
    begin = time.monotonic()
    child = os.fork()
    if not child:
        _in_child(main, log, [str(option) for option in options], args.threads)
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


def print_table(records: Records) -> None:
    """All that there is, as Markdown."""
    rows = []
    for name, family in FAMILIES.items():
        for file_format, entry in records.content.get(name, {}).get('formats', {}).items():
            rows.append([f'{name}, {family.backbone}', file_format, *_cells(entry)])
            if 'cpp' in entry:
                found = entry['cpp']
                agree, milliseconds = f'{100 * found["share"]:.2f} %', f'{found["median"]:.0f}'
                row = ['', 'the same in C++', *[''] * 4, agree, '', milliseconds, '', '']
                rows.append(row)
    header = (
        'detector, backbone',
        'format',
        'box AP, model',
        'file',
        'mask AP, model',
        'file',
        'boxes agree',
        'ms, model',
        'file',
        'export, CPU s',
        'peak MB',
    )
    print(markdown_table(header, rows))
    print(f'{cpu_name()}; {_gflops():.0f} GFLOP/s in a matrix product of {MATRIX}, one thread')


def _cells(entry: Mapping) -> list[str]:
    certificate = entry.get('certificate')
    if certificate is None:
        return ['refused', *[''] * 8]
    metrics, latency = certificate['metrics'], certificate['latency_ms']
    cells = []
    for name in ('coco/bbox_mAP', 'coco/segm_mAP'):
        values = metrics.get(name, {})
        cells += [f'{values[kind]:.3f}' if kind in values else '' for kind in ('model', 'file')]
    return [
        *cells,
        f'{100 * certificate["matched"]["share"]:.2f} %',
        *(f'{latency[kind]["median"]:.0f}' for kind in ('model', 'file')),
        f'{entry["cpu_seconds"]:.0f}',
        f'{entry["peak_bytes"] / 1e6:.0f}',
    ]


def _gflops() -> float:
    a, b = torch.randn(2, MATRIX, MATRIX)
    torch.set_num_threads(1)
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - begin)
    return 2e-9 * MATRIX**3 / min(times)
