"""What bench_detectors.py times: detectors of this package, of mmdet, of torchvision, and files."""

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

from benchmarking import detections
from benchmarking.models import build, make_run
from benchmarking.operators import MATRIX, matrix_product
from benchmarking.timing import Run, time_in_turns
from mmlocalattn.adapt.cpu import tune_for_cpu
from mmlocalattn.export.run_file import ExportedFile
from mmlocalattn.tables import markdown_table

_ARGS = argparse.Namespace(
    whole=True, train=False, batch=1, device=torch.device('cpu'), dtype='float32'
)
RUNTIMES = {'.onnx': 'onnxruntime', '.xml': 'OpenVINO', '.pt2': 'pt2', '.pt': 'TorchScript'}


@dataclass
class Contender:
    """A detector at a size; what is known of it besides its time."""

    name: str
    runtime: str
    run: Run
    facts: dict[str, Any] = field(default_factory=dict)


def contenders(
    ours: Sequence[Config],
    others: Sequence[Config],
    files: Sequence[ExportedFile],
    size: tuple[int, int],
) -> list[Contender]:
    """Build everything that runs at a size.

    Args:
        ours: Configs that run as the programs in tools/ run them.
        others: Configs that run as they are built.
        files: Those for another size are left out.
        size: Height and width.
    """
    found = [_of_config(cfg, size, cfg in ours) for cfg in (*ours, *others)]
    found.append(_of_torchvision(size))
    found += [_of_file(file, size) for file in files if _takes(file, size)]
    return found


def measure(found: Sequence[Contender], size: tuple[int, int], rounds: int) -> list[dict]:
    """Time detectors and a matrix product in turns; one record for each detector."""
    runs = [contender.run for contender in found]
    timed = time_in_turns([*runs, matrix_product(_ARGS)], _ARGS.device, rounds, math.inf)
    product_rate = 2e-9 * MATRIX**3 / statistics.median(timed[-1])
    return [
        {
            'detector': contender.name,
            'runtime': contender.runtime,
            'size': list(size),
            'seconds': statistics.median(samples),
            'samples': samples,
            'matrix_product_gflops': product_rate,
            **contender.facts,
        }
        for contender, samples in zip(found, timed)
    ]


def print_records(records: Sequence[dict], setting: dict) -> None:
    """A table: time, FLOPs, and time beside the first detector of the size."""
    rates = [record['matrix_product_gflops'] for record in records]
    print(
        f'batch 1, float32, {setting["threads"]} threads, {setting["cpu_capability"]}, matrix '
        f'product {MATRIX}^3: {statistics.median(rates):.0f} GFLOP/s'
    )
    for name, limit in setting['limits'].items():
        print(f'{name}={limit}')
    columns = ('detector', 'runtime', 'image', 's', 'GFLOP', 'proposals', 'objects', 'time')
    rows = []
    for record in records:
        first = next(other for other in records if other['size'] == record['size'])
        rows.append(
            [
                record['detector'],
                record['runtime'],
                f'{record["size"][0]} x {record["size"][1]}',
                f'{record["seconds"]:.3f}',
                f'{record["gflop"]:.0f}' if 'gflop' in record else '',
                str(record.get('proposals', '')),
                str(record.get('objects', '')),
                f'{record["seconds"] / first["seconds"]:.2f}x',
            ]
        )
    print(markdown_table(columns, rows, left=2))


def _of_config(cfg: Config, size: tuple[int, int], tuned: bool) -> Contender:
    torch.manual_seed(0)
    model: Any = build(cfg, whole=True).eval()
    if tuned:
        tune_for_cpu(model)
    run = make_run(cfg, model, size, _ARGS)
    detections.let_through(model, run)
    with FlopCounterMode(display=False) as counter:
        counts, _ = detections.count(model, run)
    facts = {'gflop': counter.get_total_flops() / 1e9, **counts}
    return Contender(Path(cfg.filename).stem, 'PyTorch', run, facts)


def _of_torchvision(size: tuple[int, int]) -> Contender:
    torch.manual_seed(0)
    model: Any = maskrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, min_size=min(size), max_size=max(size)
    ).eval()
    image = torch.rand(3, *size)
    scores: list[torch.Tensor] = []
    hook = model.roi_heads.box_predictor.register_forward_hook(
        lambda module, inputs, output: scores.append(output[0])
    )

    @torch.no_grad()
    def run() -> Any:
        return model([image])

    run()
    hook.remove()
    likely = scores[0].softmax(-1)[:, 1:].flatten()
    model.roi_heads.score_thresh = likely.topk(detections.CANDIDATES).values[-1].item()
    with FlopCounterMode(display=False) as counter:
        (found,) = run()
    facts = {
        'gflop': counter.get_total_flops() / 1e9,
        'proposals': len(scores[0]),
        'objects': len(found['boxes']),
    }
    return Contender('torchvision maskrcnn_resnet50_fpn_v2', 'PyTorch', run, facts)


def _takes(file: ExportedFile, size: tuple[int, int]) -> bool:
    least, most = file.size_range
    return all(low <= side <= high for low, side, high in zip(least, size, most))


def _of_file(file: ExportedFile, size: tuple[int, int]) -> Contender:
    shape = (1, *size, 3) if file.takes_pixels else (1, 3, *size)
    image = (
        torch.randint(256, shape, dtype=torch.uint8) if file.takes_pixels else torch.randn(shape)
    )
    outputs = file(image)
    facts = {'objects': outputs['boxes'].shape[1]} if 'boxes' in outputs else {}
    return Contender(file.path.stem, RUNTIMES[file.path.suffix], lambda: file(image), facts)
