"""What bench_model.py times: building, the check of what is compiled, measuring, a table."""

import argparse
import contextlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarking.timing import Run, peak_memory, synchronize, time_in_turns
from mmlocalattn.adapt.nodes import channels_of
from mmlocalattn.adapt.trial import random_batch
from mmlocalattn.tables import markdown_table
from mmlocalattn.training.low_precision import autocast_parts

OBJECTS = 8  # on each image


def build(cfg: Config, whole: bool, dtype: str = 'float32') -> nn.Module:
    """The model or its backbone as in one process, with random weights.

    The parts of a whole model run in the dtype as ``tools/test.py --dtype`` has it.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if whole and cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = revert_sync_batchnorm(MODELS.build(cfg.model if whole else cfg.model.backbone))
    if whole:
        autocast_parts(model, dtype)
    return model


def make_run(cfg: Config, model: Any, size: tuple[int, int], args: argparse.Namespace) -> Run:
    """A forward pass, or a forward and backward pass, of a backbone or a model of mm packages."""
    if args.whole:
        batch = random_batch(cfg, size, args.batch, args.train, OBJECTS)
        if getattr(model.data_preprocessor, 'size', None):  # mmseg pads training images to it
            model.data_preprocessor.size = size
        data = model.data_preprocessor(batch, training=args.train)
    else:
        images = torch.randn(args.batch, channels_of(cfg), *size, device=args.device)
    amp: contextlib.AbstractContextManager = contextlib.nullcontext()
    if not args.whole and args.dtype != 'float32':
        amp = torch.autocast(args.device.type, getattr(torch, args.dtype))

    def run() -> None:
        model.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(args.train), amp:
            if not args.whole:
                loss = sum(output.float().sum() for output in model(images))
            elif args.train:
                loss, _ = model.parse_losses(model(**data, mode='loss'))
            else:
                model(**data, mode='predict')
        if args.train:
            loss.backward()

    return run


def check_compiled(
    cfg: Config,
    model: nn.Module,
    compiled: nn.Module,
    size: tuple[int, int],
    args: argparse.Namespace,
) -> float:
    """Compare the maps of a backbone; return how many seconds the compiled one took.

    Raises:
        SystemExit: If they differ by more than 1e-3 of their largest value.
    """
    image = torch.randn(args.batch, channels_of(cfg), *size, device=args.device)
    with torch.no_grad():
        expected = model(image)
        begin = time.perf_counter()
        actual = compiled(image)
        synchronize(args.device)
        seconds = time.perf_counter() - begin
    error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(actual, expected))
    if not error < 1e-3:  # NaN too
        raise SystemExit(f'error: compiled and eager maps of {size} differ by {error:.1e}')
    return seconds


def eager() -> contextlib.AbstractContextManager:
    """Where compiled models run as they were, which counters of FLOPs need."""
    has_stances = hasattr(torch.compiler, 'set_stance')  # since torch 2.6
    return torch.compiler.set_stance('force_eager') if has_stances else contextlib.nullcontext()


def measure(names: Sequence[str], runs: Sequence[Run], args: argparse.Namespace) -> list[dict]:
    """Time the models in turns; one record each."""
    records = []
    for name, run, samples in zip(names, runs, time_in_turns(runs, args.device, args.rounds)):
        seconds = statistics.median(samples)
        with eager(), FlopCounterMode(display=False) as counter:
            run()
        records.append(
            {
                'config': name,
                'seconds': seconds,
                'samples': samples,
                'images_per_second': args.batch / seconds,
                'gflop': counter.get_total_flops() / 1e9,
                'peak_bytes': peak_memory(run, args.device),
            }
        )
    return records


def profile(run: Run, device: torch.device) -> str:
    """The operators of a pass that take the most time, as a table."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == 'cuda':
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        synchronize(device)
    order = 'self_device_time_total' if device.type == 'cuda' else 'self_cpu_time_total'
    return profiler.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=50)


def print_records(records: list[dict]) -> None:
    """One line per size and model; the last column compares with the first model."""
    columns = ('config', 'image', 's', 'images/s', 'GFLOP/s', 'extra memory', 'parameters', 'time')
    rows = []
    for record in records:
        height, width = record['size']
        first = next(other for other in records if other['size'] == record['size'])
        peak = record['peak_bytes']
        rows.append(
            [
                record['config'],
                f'{height} x {width}',
                f'{record["seconds"]:.3f}',
                f'{record["images_per_second"]:.2f}',
                f'{record["gflop"] / record["seconds"]:.0f}',
                '' if peak is None else f'{peak / 1e6:.0f} MB',
                f'{record["parameters"] / 1e6:.1f} M',
                f'{record["seconds"] / first["seconds"]:.2f}x',
            ]
        )
    print(markdown_table(columns, rows))
