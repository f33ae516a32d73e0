"""What bench_heads.py does with each detector: train, export, verify, run in C++, tell."""

import argparse
import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.fileio import load

from benchmarking.cpp import command_of, output_of, run_program
from benchmarking.heads import FAMILIES, SIDE, folder_name, make_config
from benchmarking.tool_runs import Records, StepFailed, machine_line, run_tool
from mmlocalattn.data.digit_cards import write_digit_cards
from mmlocalattn.export.agreement import match_boxes
from mmlocalattn.export.formats import SUFFIXES
from mmlocalattn.export.run_file import load_file
from mmlocalattn.tables import markdown_table

IMAGES, VAL_IMAGES = 800, 40
MAX_AP_DROP = 0.01
"""On 24 images the default, 0.001, is a box in the padding that counts as image for the file."""
CPP_IMAGES = 20
CPP_SCORE = 0.3


def run_family(name: str, records: Records, args: argparse.Namespace) -> bool:
    """Do what is not done yet; gives whether there is a trained model."""
    record, folder = records.of(name), args.work_dir / folder_name(name)
    formats = record.setdefault('formats', {})
    if 'training' not in record:
        try:
            record['training'] = _train(name, records, args)
        except StepFailed as error:
            print(f'  {error}', flush=True)
            return False
        records.save()
    for file_format in FAMILIES[name].formats:
        if 'certificate' not in formats.get(file_format, {}):
            print(f'{name}: {file_format}', flush=True)
            formats[file_format] = _export(folder, file_format, args)
            records.save()
    traced = formats.get('torchscript', {})
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
    return run_tool(args.threads, folder / 'train.log', 'train.py', *command)


def _checkpoint(folder: Path) -> Path:
    return Path((folder / 'train' / 'last_checkpoint').read_text().strip())


def _export(folder: Path, file_format: str, args: argparse.Namespace) -> dict[str, Any]:
    """A file and what its certificate says, or why there is none."""
    out = folder / f'model{SUFFIXES[file_format]}'
    log = folder / f'{file_format}.log'
    command = (folder / 'config.py', _checkpoint(folder), '--format', file_format, '--out', out)
    limits = ('--max-ap-drop', MAX_AP_DROP)
    try:
        usage = run_tool(args.threads, log, 'export.py', *command, *limits)
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
    run_tool(args.threads, folder / 'test.log', 'test.py', *command)
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
    print(machine_line())


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
