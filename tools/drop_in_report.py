"""Swap our backbones into every config that mmdet and mmseg ship, and see which models then work.

Each config gets SSViT-T, and a fixed tenth of them other backbones too. An adapted config is built
with a narrow backbone and runs a loss and a prediction on random images. Results are appended to a
file as they come, so that an interrupted run goes on where it stopped.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmlocalattn.adapt import BACKBONES, CannotAdapt, swap_backbone
from mmlocalattn.collect_env import module_version
from mmlocalattn.engine import load_config

_ARCH = dict(embed_dims=(8, 16, 24, 32), depths=(1,) * 4, num_heads=(1, 2, 3, 4))
NARROW = {
    'SSViT': dict(arch=dict(_ARCH, mlp_ratios=(2,) * 4)),
    'SlidePVT': dict(arch=dict(_ARCH, mlp_ratios=(2,) * 4, sr_ratios=(8, 4, 2, 1))),
    'QnAViT': dict(
        arch=dict(
            _ARCH,
            num_heads=(1, 2, 2, 4),
            mlp_ratios=(2,) * 4,
            kernel_sizes=(3,) * 4,
            window_depths=(0, 0, 1, 1),
            window_heads=(1, 2, 3, 4),
            window_sizes=(7, 7, 14, 7),
        )
    ),
    'SASAResNet': dict(
        depth=dict(embed_dims=(32, 48, 64, 96), depths=(1,) * 4, num_heads=(2,) * 4)
    ),
}
EVERYWHERE = 'ssvit_t'
IN_A_TENTH = ('qna_vit_t', 'slide_pvt_t', 'sasa_r26')
SIDE = 128  # of the random images
CLASSES = 2  # of their labels: few enough for every head
SECONDS = 300  # that one config may take
OUTCOMES = ('adapted', 'refused', 'failed', 'broken')
"""``broken``: the config as it is shipped does not load or build here either."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--packages', nargs='+', default=['mmdet', 'mmseg'])
    parser.add_argument('--filter', default='', help='only configs whose path contains this')
    parser.add_argument('--processes', type=int, default=os.cpu_count())
    parser.add_argument(
        '--results',
        type=Path,
        default=Path('work_dirs/drop_in.jsonl'),
        help='results so far, continued',
    )
    parser.add_argument('--report', type=Path, help='Markdown file to write')
    return parser.parse_args(argv)


def tasks(packages: Sequence[str], text: str) -> list[tuple[str, str]]:
    """(config, backbone) for all configs whose name contains ``text``."""
    found = []
    for package in packages:
        folder = Path(find_spec(package).origin).parent / '.mim' / 'configs'
        for file in sorted(folder.rglob('*.py')):
            name = f'{package}::{file.relative_to(folder)}'
            if '_base_' in file.parts or 'common' in file.parts or text not in name:
                continue
            found.append((name, EVERYWHERE))
            if hashlib.sha256(name.encode()).digest()[0] < 26:  # a tenth of 256
                found += [(name, other) for other in IN_A_TENTH if other in BACKBONES]
    return found


def try_config(task: tuple[str, str]) -> dict:
    """The outcome for one config and backbone, in a process of its own pool."""
    path, name = task
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    torch.manual_seed(0)
    signal.signal(signal.SIGALRM, _time_is_up)
    signal.alarm(SECONDS)
    try:
        outcome, detail = _outcome(path, name)
    finally:
        signal.alarm(0)
    return dict(config=path, backbone=name, outcome=outcome, detail=detail)


def _time_is_up(*_: object) -> None:
    raise TimeoutError(f'took more than {SECONDS} s')


def _outcome(path: str, name: str) -> tuple[str, str]:
    try:
        cfg = load_config(path)
        if 'model' not in cfg:
            return 'refused', 'no model: a config for others to inherit from'
    except Exception as error:
        return 'broken', _last_line(error)
    backbone = BACKBONES[name]['type'].rpartition('.')[2]
    try:
        swapped = swap_backbone(cfg, name, **NARROW[backbone])
        run_model(swapped)
    except CannotAdapt as error:
        return 'refused', str(error)
    except Exception as error:
        if reason := _breaks_anyway(cfg):
            return 'broken', reason
        return 'failed', f'{_last_line(error)} ({_place(error)})'
    return 'adapted', ''


def _last_line(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:300]


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f'{Path(frame.filename).name}:{frame.lineno} {frame.name}'


def _breaks_anyway(cfg: Config) -> str:
    """Why the config as it is shipped does not build or run here, or nothing."""
    try:
        for part in _dicts(cfg._cfg_dict):
            part.pop('init_cfg', None)
        cfg.model.pop('pretrained', None)
        run_model(cfg)
    except Exception as error:
        return f'the config as shipped: {_last_line(error)}'
    return ''


def _dicts(node: object) -> Iterator[dict]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _dicts(child)


def run_model(cfg: Config) -> None:
    """Build the model of a config, take the loss of a random batch, and predict.

    Raises:
        ValueError: If the loss is not finite or the number of predictions is wrong.
    """
    from mmengine.model import revert_sync_batchnorm

    init_default_scope(cfg.default_scope)
    for part in _dicts(cfg.model.get('data_preprocessor') or {}):
        if 'size' in part:
            part['size'] = (SIDE, SIDE)
        part.pop('batch_augments', None)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    batch = random_batch(cfg, training=True)
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    if not torch.isfinite(loss):
        raise ValueError(f'loss is {loss}')
    model.eval()
    batch = random_batch(cfg, training=False)
    with torch.no_grad():
        results = model(**model.data_preprocessor(batch, training=False), mode='predict')
    if len(results) != len(batch['inputs']):
        raise ValueError(f'{len(results)} predictions for {len(batch["inputs"])} images')


def random_batch(cfg: Config, training: bool) -> dict:
    """Random images with random labels, as the data loader of the config's toolbox packs them."""
    if cfg.default_scope == 'mmdet':
        return _detection_batch(cfg, training)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        labels = torch.randint(CLASSES, (1, SIDE, SIDE))
        shape = dict(img_shape=(SIDE, SIDE), ori_shape=(SIDE, SIDE), pad_shape=(SIDE, SIDE))
        samples.append(
            SegDataSample(
                gt_sem_seg=PixelData(data=labels),
                gt_edge_map=PixelData(data=labels),
                gt_depth_map=PixelData(data=torch.rand(1, SIDE, SIDE)),
                metainfo=shape | dict(flip=False),
            )
        )
    images = [torch.randint(256, (3, SIDE, SIDE), dtype=torch.uint8) for _ in range(2)]
    return dict(inputs=images, data_samples=samples)


def _detection_batch(cfg: Config, training: bool) -> dict:
    from mmdet.testing import demo_mm_inputs, demo_track_inputs

    if 'Track' in str(cfg.model.get('data_preprocessor', {}).get('type')):
        return demo_track_inputs(
            batch_size=1, num_frames=2, num_key_imgs=2, image_shapes=(3, SIDE, SIDE),
            num_classes=1, with_mask=True,
        )  # fmt: skip
    batch = demo_mm_inputs(
        2, [(3, SIDE, SIDE)] * 2, [3, 3], num_classes=CLASSES, with_mask=True, with_semantic=True
    )
    if training and 'semi_train_cfg' in cfg.model:
        branches = ('sup', 'unsup_teacher', 'unsup_student')
        for sample in batch['data_samples']:
            sample.set_metainfo(dict(homography_matrix=torch.eye(3).numpy()))
        return {key: dict.fromkeys(branches, value) for key, value in batch.items()}
    return batch


@cache
def packages_versions() -> str:
    return ', '.join(module_version(name) for name in ('torch', 'mmcv', 'mmdet', 'mmseg'))


def read_results(path: Path) -> dict[tuple[str, str], dict]:
    """Results so far by (config, backbone). A last line that was cut off does not count."""
    results = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        results[result['config'], result['backbone']] = result
    return results


def report(results: Sequence[dict]) -> str:
    """Markdown: counts by package and backbone, reasons, and what failed."""
    lines = ['| package | backbone | configs | adapted | refused | failed | broken as shipped |']
    lines += ['|---|---|---|---|---|---|---|']
    groups = Counter((r['config'].partition('::')[0], r['backbone']) for r in results)
    for (package, backbone), total in sorted(groups.items()):
        counts = Counter(
            r['outcome']
            for r in results
            if r['config'].startswith(f'{package}::') and r['backbone'] == backbone
        )
        cells = ' | '.join(str(counts[outcome]) for outcome in OUTCOMES)
        lines.append(f'| {package} | {backbone} | {total} | {cells} |')
    for outcome, title in zip(OUTCOMES[1:], ('Refused', 'Failed', 'Broken as shipped')):
        reasons: dict[str, list[str]] = {}
        for result in results:
            if result['outcome'] == outcome:
                reasons.setdefault(result['detail'], []).append(result['config'])
        lines += ['', f'## {title}', '', '| configs | reason | for example |', '|---|---|---|']
        for reason, configs in sorted(reasons.items(), key=lambda item: -len(item[1])):
            text = reason.replace('|', '\\|')
            lines.append(f'| {len(configs)} | {text} | `{configs[0]}` |')
    return '\n'.join(lines) + '\n'


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    wanted = tasks(args.packages, args.filter)
    if not wanted:
        raise SystemExit(f'error: no config of {args.packages} contains {args.filter!r}')
    results = read_results(args.results)
    missing = [task for task in wanted if task not in results]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn())
    context = multiprocessing.get_context('spawn')
    with (
        Progress(*columns, TimeRemainingColumn()) as progress,
        context.Pool(args.processes, maxtasksperchild=50) as pool,
        args.results.open('a') as file,
    ):
        if results and not args.results.read_text().endswith('\n'):
            file.write('\n')  # behind a line that was cut off
        bar = progress.add_task('configs', total=len(wanted), completed=len(wanted) - len(missing))
        for result in pool.imap_unordered(try_config, missing):
            results[result['config'], result['backbone']] = result
            file.write(json.dumps(result) + '\n')
            file.flush()
            progress.advance(bar)
    text = report([results[task] for task in wanted])
    print(text)
    if args.report:
        args.report.write_text(f'Measured with {packages_versions()}.\n\n{text}')


if __name__ == '__main__':
    main()
