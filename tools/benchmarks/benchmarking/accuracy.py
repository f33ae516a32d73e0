"""The detectors of bench_accuracy.py: one recipe, one size, a backbone of each family.

A config is that of the quickstart with another backbone of about as many parameters, random at the
start. Widths and depths are our choice.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from mmengine.config import Config
from scipy import stats

from benchmarking.tool_runs import Records, StepFailed, machine_line, run_tool
from mmlocalattn.adapt import swap_backbone
from mmlocalattn.data.digit_cards import write_digit_cards
from mmlocalattn.tables import markdown_table
from mmlocalattn.training import load_config

RECIPE = Path(__file__).parents[3] / 'configs' / 'quickstart_maskrcnn_ssvit.py'
IMAGES, VAL_IMAGES, SIDE = 800, 200, 160
PARAMETERS = 970_000
"""Of a backbone, within a tenth."""
METRICS = ('coco/bbox_mAP', 'coco/segm_mAP')

_DIMS = [32, 64, 128, 160]


def _plain(mlp_ratio: int, **more: Any) -> dict:
    common = dict(embed_dims=_DIMS, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 5])
    return {**common, 'mlp_ratios': [mlp_ratio] * 4, **more}


_BN = dict(type='BN')
_QNA = _plain(
    3,
    depths=[1, 1, 1, 0],
    kernel_sizes=[3] * 4,
    window_depths=[0, 0, 1, 1],
    window_heads=[1, 2, 4, 5],
    window_sizes=[7] * 4,
)
_REDUCTIONS = dict(sr_ratios=[8, 4, 2, 1])
_CSWIN = _plain(3, num_heads=[2, 2, 4, 4], split_sizes=[1, 2, 7, 7])
_SASA = dict(embed_dims=[112, 224, 448, 560], depths=[1, 1, 2, 1], num_heads=[4] * 4)
_SWIN = dict(embed_dims=32, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], mlp_ratio=2)

BACKBONES: dict[str, dict] = {
    'SSViT': dict(type='mmlocalattn.SSViT', arch=_plain(3), norm_cfg=_BN),
    'NAT': dict(type='mmlocalattn.NAT', arch=_plain(3)),
    'DiNAT': dict(type='mmlocalattn.DiNAT', arch=_plain(3), dilations=[[2], [2], [1, 2], [1]]),
    'Slide-Swin': dict(type='mmlocalattn.SlideSwin', arch=_plain(4)),
    'Slide-PVT': dict(type='mmlocalattn.SlidePVT', arch=_plain(2, **_REDUCTIONS)),
    'Slide-PVTv2': dict(type='mmlocalattn.SlidePVTv2', arch=_plain(2, **_REDUCTIONS)),
    'Slide-CSwin': dict(type='mmlocalattn.SlideCSwin', arch=_CSWIN),
    'QnA-ViT': dict(type='mmlocalattn.QnAViT', arch=_QNA),
    'SASA-ResNet': dict(type='mmlocalattn.SASAResNet', depth=_SASA),
    "mmdet's ResNet": dict(type='mmdet.ResNet', depth=18, base_channels=19, norm_cfg=_BN),
    "mmdet's Swin": dict(type='mmdet.SwinTransformer', **_SWIN),
}

IN_BF16 = 'SSViT in bf16'  # where the processor computes in it, train.py --amp is faster
BACKBONES[IN_BF16] = BACKBONES['SSViT']


def make_config(name: str, data: Path, seed: int) -> Config:
    """The config of a training.

    Args:
        name: Key of :data:`BACKBONES`.
        data: Folder of digit cards.
        seed: Of weights and of the order of the images.
    """
    cfg = swap_backbone(load_config(str(RECIPE)), BACKBONES[name], keep_optimizer=True)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{data}/'
        loader.update(num_workers=0, persistent_workers=False)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = f'{data}/annotations/instances_val.json'
    cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=1)
    cfg.randomness = dict(seed=seed)
    return cfg


def run_seed(name: str, seed: int, records: Records, args: argparse.Namespace) -> bool:
    """Train one, if it is not done; gives whether it is."""
    record = records.of(name)
    if str(seed) in record:
        return True
    data, folder = args.work_dir / 'data', args.work_dir / _folder_name(name) / str(seed)
    if not data.is_dir():
        write_digit_cards(data, IMAGES, VAL_IMAGES, SIDE)
    folder.mkdir(parents=True, exist_ok=True)
    make_config(name, data.absolute(), seed).dump(folder / 'config.py')
    print(f'{name}: seed {seed}', flush=True)
    options = ('--amp',) if name == IN_BF16 else ()
    command = (folder / 'config.py', '--work-dir', folder / 'train', '--resume', *options)
    try:
        usage = run_tool(args.threads, folder / 'train.log', 'train.py', *command)
    except StepFailed as error:
        print(f'  {error}', flush=True)
        return False
    record[str(seed)] = {**usage, 'metrics': _last_metrics(folder / 'train')}
    records.save()
    return True


def _folder_name(name: str) -> str:
    return name.lower().replace(' ', '_').replace('-', '_').replace("'", '')


def _last_metrics(folder: Path) -> dict[str, float]:
    """Of the last validation, from the newest log."""
    log = max(folder.glob('*/vis_data/scalars.json'))
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    found = [entry for entry in entries if METRICS[0] in entry][-1]
    return {name: found[name] for name in METRICS}


def print_table(records: Records) -> None:
    """All that there is, as Markdown, best first."""
    rows = []
    for name in BACKBONES:
        runs = [*records.content.get(name, {}).values()]
        if runs:
            scores = [[100 * run['metrics'][metric] for run in runs] for metric in METRICS]
            minutes = statistics.median(run['cpu_seconds'] for run in runs) / 60
            cells = [*map(with_interval, scores), str(len(runs)), f'{minutes:.1f}']
            rows.append((statistics.mean(scores[0]), [name, *cells]))
    header = ('backbone', 'box AP', 'mask AP', 'seeds', 'training, CPU min')
    print(markdown_table(header, [row for _, row in sorted(rows, reverse=True)]))
    print(machine_line())


def with_interval(scores: list[float]) -> str:
    """The mean, and its 95 % interval by Student's t where there are several."""
    mean = statistics.mean(scores)
    if len(scores) < 2:
        return f'{mean:.1f}'
    error = statistics.stdev(scores) / len(scores) ** 0.5
    return f'{mean:.1f} ± {stats.t.ppf(0.975, len(scores) - 1) * error:.1f}'
