"""What bench_model.py times: building, the check of what is compiled, measuring, a table."""

import argparse
import contextlib
import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarking import detections
from benchmarking.operators import MATRIX, matrix_product
from benchmarking.parts import shares_of_parts
from benchmarking.timing import (
    Run,
    peak_memory,
    synchronize,
    time_after_settling,
    time_in_turns,
    with_freed_memory,
)
from mmlocalattn.adapt.cpu import tune_for_cpu
from mmlocalattn.adapt.nodes import channels_of
from mmlocalattn.adapt.trial import random_batch
from mmlocalattn.tables import markdown_table
from mmlocalattn.training.low_precision import autocast_parts

OBJECTS = 8  # on each image


@dataclass
class Variant:
    """A model that is timed; ``tuned`` as the programs in tools/ run it, or as it is built."""

    name: str
    cfg: Config
    model: Any
    tuned: bool = True


def build(cfg: Config, whole: bool) -> nn.Module:
    """The model or its backbone as in one process, with random weights."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if whole and cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return revert_sync_batchnorm(MODELS.build(cfg.model if whole else cfg.model.backbone))


def make_run(
    cfg: Config, model: Any, size: tuple[int, int], args: argparse.Namespace
) -> Callable[..., Any]:
    """A forward pass, or a forward and backward pass, of a backbone or a model of mm packages."""
    if args.whole:
        batch = random_batch(cfg, size, args.batch, args.train, OBJECTS)
        if hasattr(model, 'rpn_head'):
            for sample in batch['data_samples']:
                del sample.proposals  # else the few of it are taken in the place of the RPN's
        if getattr(model.data_preprocessor, 'size', None):  # mmseg pads training images to it
            model.data_preprocessor.size = size
        data = model.data_preprocessor(batch, training=args.train)
    else:
        images = torch.randn(args.batch, channels_of(cfg), *size, device=args.device)
    amp: contextlib.AbstractContextManager = contextlib.nullcontext()
    if not args.whole and args.dtype != 'float32':
        amp = torch.autocast(args.device.type, getattr(torch, args.dtype))

    def run(backward: bool = args.train) -> Any:
        model.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(backward), amp:
            if not args.whole:
                loss = sum(output.float().sum() for output in model(images))
            elif args.train:
                loss, _ = model.parse_losses(model(**data, mode='loss'))
            else:
                return model(**data, mode='predict')
        if backward:
            loss.backward()
        return None

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


def variants(
    configs: Sequence[Config], paths: Sequence[str], args: argparse.Namespace
) -> list[Variant]:
    """What is timed: each model, and beside it what the arguments ask for."""
    found = []
    for cfg, path in zip(configs, paths):
        model: Any = build(cfg, args.whole).to(args.device)
        model.train(args.train)  # mmdet's ResNet does not return itself
        found.append(Variant(Path(path).stem, cfg, model))
        if args.beside_untuned:
            as_built = copy.deepcopy(model)
            found.append(Variant(f'{Path(path).stem}, as built', cfg, as_built, tuned=False))
    for variant in found if args.whole else ():
        autocast_parts(variant.model, args.dtype)  # as tools/test.py --dtype has it
        if variant.tuned and args.device.type == 'cpu':
            tune_for_cpu(variant.model)
    if args.compile:
        several = len(args.size) > 1
        for variant in found[:]:
            model = torch.compile(variant.model, fullgraph=True, dynamic=several)
            found.append(Variant(f'{variant.name}, compiled', variant.cfg, model))
    return found


def measure(
    found: Sequence[Variant],
    runs: Sequence[Callable[..., Any]],
    size: tuple[int, int],
    args: argparse.Namespace,
) -> list[dict]:
    """Time the models and a matrix product in turns; one record for each model."""
    finds = args.whole and not args.train
    threshold = None
    for variant, run in zip(found, runs):
        if finds and variant.tuned:
            threshold = detections.let_through(variant.model, run, args.batch)
        elif finds:
            detections.set_threshold(variant.model, threshold)
    product, forwards = matrix_product(args), []
    if args.beside_untuned:
        runs = [with_freed_memory(run, variant.tuned) for run, variant in zip(runs, found)]
        timed = time_after_settling([*runs, product], args.device, args.rounds)
    else:
        forwards = [partial(run, backward=False) for run in runs if args.train]
        timed = time_in_turns([*runs, *forwards, product], args.device, args.rounds, math.inf)
    product_rate = 2e-9 * MATRIX**3 / statistics.median(timed[-1])
    records, before = [], None
    for i, (variant, run, samples) in enumerate(zip(found, runs, timed)):
        seconds = statistics.median(samples)
        with eager(), FlopCounterMode(display=False) as counter:
            counts, samples_found = detections.count(variant.model, run)
        record = {
            'config': variant.name,
            'size': list(size),
            'parameters': sum(parameter.numel() for parameter in variant.model.parameters()),
            'seconds': seconds,
            'samples': samples,
            **({'forward_seconds': statistics.median(timed[len(runs) + i])} if forwards else {}),
            'images_per_second': args.batch / seconds,
            'gflop': counter.get_total_flops() / 1e9,
            'matrix_product_gflops': product_rate,
            'peak_bytes': None if args.beside_untuned else peak_memory(run, args.device),
            **counts,
        }
        if not variant.tuned and detections.has_objects(samples_found):
            record['share_of_same_objects'] = detections.share_of_same(before, samples_found)
        before = samples_found
        if args.whole and args.device.type == 'cpu':
            record['shares'] = shares_of_parts(variant.model, run)
        if args.profile:
            print(f'{variant.name}, {size[0]} x {size[1]}')
            print(profile(run, args.device))
        records.append(record)
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
    for record in records:
        if 'forward_seconds' in record:
            forward = record['forward_seconds']
            print(
                f'{record["config"]}: forward alone {forward:.3f} s, '
                f'with backward {record["seconds"] / forward:.2f} times as long'
            )
        if 'share_of_same_objects' in record:
            print(
                f'{record["config"]}: {record["objects"]} objects, '
                f'{100 * record["share_of_same_objects"]:.0f} % the same within 1e-4 '
                '(of the longer side)'
            )


def print_shares(records: list[dict]) -> None:
    """The shares of the parts of whole models, in percent; a column for each model."""
    shown = [record for record in records if 'shares' in record]
    parts = list(dict.fromkeys(part for record in shown for part in record['shares']))
    if not shown:
        return
    columns = ['% of'] + [f'{r["config"]}, {r["size"][0]} x {r["size"][1]}' for r in shown]
    rows = [
        [part, *(f'{100 * record["shares"].get(part, 0):.1f}' for record in shown)]
        for part in parts
    ]
    print(markdown_table(columns, rows))
