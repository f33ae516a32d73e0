"""What bench_export.py measures: export, the file, time and memory of the file and the model."""

import argparse
import collections
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarking.timing import Run, peak_memory, time_in_turns
from mmlocalattn.tables import markdown_table

CPU = torch.device('cpu')
MATRIX = 1024
"""Side of the matrices whose product is timed beside."""


def measure(args: argparse.Namespace) -> dict:
    """Export the backbone, then time and weigh both: a record."""
    import onnx

    from mmlocalattn.export import build_exportable, export
    from mmlocalattn.training import config_of

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'backbone.onnx'
        model = build_exportable(config_of(args), part='backbone')
        begin = time.perf_counter(), time.process_time()
        errors = export(model, path, 'onnx', args.size, {}, partial(print, flush=True))
        end = time.perf_counter(), time.process_time()
        graph = onnx.load(path, load_external_data=False).graph
        names = collections.Counter(node.op_type for node in _nodes(graph))
        record: dict[str, Any] = {
            'config': Path(args.config).stem,
            'size': list(args.size[0]),
            'export_seconds': end[0] - begin[0],
            'export_cpu_seconds': end[1] - begin[1],
            'error': max(errors),
            'nodes': sum(names.values()),
            'node_types': dict(names.most_common()),
            'file_bytes': sum(file.stat().st_size for file in Path(folder).iterdir()),
        }
        ways: dict[str, tuple[Any, ...]] = {
            'pytorch': (_model_run, args),
            'onnxruntime': (_file_run, args, path),
        }
        product = partial(torch.mm, *torch.randn(2, MATRIX, MATRIX))
        runs = [*(make(*inputs) for make, *inputs in ways.values()), product]
        *samples, products = time_in_turns(runs, CPU, args.rounds)
        for (name, (make, *inputs)), seconds in zip(ways.items(), samples):
            record[name] = {
                'seconds': statistics.median(seconds),
                'samples': seconds,
                'peak_bytes': _peak_of_first(args.threads, make, *inputs),
            }
    record['matrix_product_gflops'] = 2e-9 * MATRIX**3 / statistics.median(products)
    return record


def print_record(record: dict) -> None:
    """A table of both ways, and a line about the file."""
    print(
        f'{record["config"]} at {record["size"][0]} x {record["size"][1]}: exported in '
        f'{record["export_seconds"]:.0f} s ({record["export_cpu_seconds"]:.0f} s of CPU), '
        f'{record["nodes"]} nodes, {record["file_bytes"] / 1e6:.0f} MB, '
        f'differs by {record["error"]:.1e}; matrix product of {MATRIX}: '
        f'{record["matrix_product_gflops"]:.0f} GFLOP/s'
    )
    rows, first = [], record['pytorch']
    for name in ('pytorch', 'onnxruntime'):
        way = record[name]
        peak = way['peak_bytes']
        rows.append(
            [
                name,
                f'{1e3 * way["seconds"]:.0f}',
                f'{way["seconds"] / first["seconds"]:.2f}x',
                '' if peak is None else f'{peak / 1e6:.0f} MB',
                '' if peak is None else f'{peak / first["peak_bytes"]:.2f}x',
            ]
        )
    print(markdown_table(('', 'ms', 'time', 'extra memory', 'memory'), rows))


def _nodes(graph: Any) -> Any:
    """All nodes of a graph, those of its loops too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)


def _model_run(args: argparse.Namespace) -> Run:
    from mmlocalattn.export import build_exportable
    from mmlocalattn.training import config_of

    model: Any = build_exportable(config_of(args), part='backbone')
    image = torch.randn(1, model.in_channels, *args.size[0])

    def run() -> None:
        with torch.no_grad():
            model(image)

    return run


def _file_run(args: argparse.Namespace, path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    channels = session.get_inputs()[0].shape[1]
    image = torch.randn(1, channels, *args.size[0]).numpy()
    return lambda: session.run(None, {'image': image})


def _peak_of_first(threads: int, make: Callable[..., Run], *inputs: object) -> int | None:
    """Bytes that the first pass needs, in a new process: runtimes keep what they allocated."""
    with multiprocessing.get_context('spawn').Pool(1, torch.set_num_threads, (threads,)) as pool:
        return pool.apply(_peak, (make, *inputs))


def _peak(make: Callable[..., Run], *inputs: object) -> int | None:
    return peak_memory(make(*inputs), CPU)
