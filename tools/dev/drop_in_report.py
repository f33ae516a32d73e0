"""Swap our backbones into every config that mmdet and mmseg ship, and see which models then work.

Each config gets SSViT-T, and a fixed tenth of them other backbones too. An adapted config is built
with a narrow backbone and runs a loss and a prediction on random images; a model that several
configs share, as those of two schedules do, runs once. Results are appended to a file as they come,
so that an interrupted run goes on where it stopped.
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
from collections.abc import MutableMapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmlocalattn.adapt import BACKBONES, CannotAdapt, swap_backbone
from mmlocalattn.adapt.nodes import dicts
from mmlocalattn.adapt.trial import SIDES, run_model, small_model
from mmlocalattn.collect_env import module_version
from mmlocalattn.training import load_config

_ARCH = dict(embed_dims=(8, 16, 24, 32), depths=(1,) * 4, num_heads=(1, 2, 3, 4))
NARROW: dict[str, dict[str, Any]] = {
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
SECONDS = 300  # that one config may take
OUTCOMES = ('adapted', 'refused', 'failed', 'broken')
"""``broken``: the config as it is shipped does not load, build or run here either."""
INTRODUCTION = """# Which stock configs work

Every config that mmdet and mmsegmentation ship gets SSViT-T, and a fixed tenth of them QnA-ViT-T,
Slide-PVT-T and SASA-26. An adapted config is built with a narrow backbone, and runs a loss and a
prediction on random images. Written by `python tools/dev/drop_in_report.py --report FILE` with
{versions}.

"""
PYRAMIDS = (
    *('ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNeXt', 'Res2Net', 'ResNeSt', 'RegNet', 'ConvNeXt'),
    *('SwinTransformer', 'PyramidVisionTransformer', 'PyramidVisionTransformerV2'),
)
"""Backbones that should be exchangeable, of which the report gives the share."""


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
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f'error: --packages names {package}, which is not installed')
        folder = Path(spec.origin).parent / '.mim' / 'configs'
        for file in sorted(folder.rglob('*.py')):
            name = f'{package}::{file.relative_to(folder)}'
            if '_base_' in file.parts or 'common' in file.parts or text not in name:
                continue
            found.append((name, EVERYWHERE))
            if hashlib.sha256(name.encode()).digest()[0] < 26:  # a tenth of 256
                found += [(name, other) for other in IN_A_TENTH if other in BACKBONES]
    return found


_seen: MutableMapping[str, tuple[str, str]] = {}
"""Outcome and detail of the models that ran, by their digest."""


def _share(seen: MutableMapping[str, tuple[str, str]]) -> None:
    """Let this process know what the others have run, and not tell what it initialises."""
    global _seen
    _seen = seen
    MMLogger.get_current_instance().setLevel('ERROR')


def try_config(task: tuple[str, str]) -> dict:
    """The result for one config and backbone, in a process of its own pool.

    Returns:
        The task; ``outcome``, one of :data:`OUTCOMES`, with its reason as ``detail``; the type of
        the ``original`` backbone; and a digest of the ``model``. The last two may be empty.
    """
    path, name = task
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    torch.manual_seed(0)
    signal.signal(signal.SIGALRM, _time_is_up)
    signal.alarm(SECONDS)
    result = dict(config=path, backbone=name, outcome='', detail='', original='', model='')
    try:
        result['outcome'], result['detail'] = _outcome(path, name, result)
    finally:
        signal.alarm(0)
    return result


def _time_is_up(*_: object) -> None:
    raise TimeoutError(f'took more than {SECONDS} s')


def _outcome(path: str, name: str, result: dict) -> tuple[str, str]:
    try:
        cfg = load_config(path)
        if 'model' not in cfg:
            return 'refused', 'no model: a config for others to inherit from'
    except Exception as error:
        return 'broken', _last_line(error)
    result['original'] = original_backbone(cfg)
    backbone = BACKBONES[name].name
    try:
        swapped = swap_backbone(cfg, name, **NARROW[backbone])
    except CannotAdapt as error:
        return 'refused', str(error)
    except Exception as error:
        return 'failed', f'{_last_line(error)} ({_place(error)})'
    result['model'] = digest = _digest(swapped)
    if digest not in _seen:
        _seen[digest] = _run_outcome(cfg, swapped)
    return _seen[digest]


def _run_outcome(cfg: Config, swapped: Config) -> tuple[str, str]:
    try:
        run_model(swapped)
    except Exception as error:
        if reason := _breaks_anyway(cfg):
            return 'broken', reason
        return 'failed', f'{_last_line(error)} ({_place(error)})'
    return 'adapted', ''


def original_backbone(cfg: Config) -> str:
    """The type of the backbone of a config without its scope, empty if it has not just one."""
    types = {
        child['type'].rpartition('.')[2]
        for part in dicts(cfg.model)
        for key, child in part.items()
        if key == 'backbone' and isinstance(child, dict) and isinstance(child.get('type'), str)
    }
    return types.pop() if len(types) == 1 else ''


def _digest(cfg: Config) -> str:
    """Equal for configs whose models do not differ in what is run here."""
    model = small_model(cfg, SIDES[0])
    text = json.dumps([cfg.default_scope, model], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _last_line(error: Exception) -> str:
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    return text.replace(f'{Path(torch.__file__).parents[1]}/', '')[:300]


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f'{Path(frame.filename).name}:{frame.lineno} {frame.name}'


def _breaks_anyway(cfg: Config) -> str:
    """Why the config as it is shipped does not build or run here, or nothing."""
    try:
        run_model(cfg)
    except Exception as error:
        return f'the config as shipped: {_last_line(error)} ({_place(error)})'
    return ''


def ran(results: dict[tuple[str, str], dict]) -> dict[str, tuple[str, str]]:
    """Outcome and detail of the models that ran, by their digest."""
    return {r['model']: (r['outcome'], r['detail']) for r in results.values() if r['model']}


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


def introduction() -> str:
    """What was done, with what."""
    modules = ('torch', 'mmcv', 'mmdet', 'mmseg')
    return INTRODUCTION.format(versions=', '.join(map(module_version, modules)))


def report(results: Sequence[dict]) -> str:
    """Markdown: counts by package and backbone, reasons, and what failed."""
    lines = ['| package | backbone | configs | adapted | refused | failed | not run as shipped |']
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
    works = [r for r in results if r['original'] in PYRAMIDS and r['outcome'] != 'broken']
    adapted = sum(r['outcome'] == 'adapted' for r in works)
    if works:
        lines += ['', f'Of {len(works)} with a pyramid backbone ({", ".join(PYRAMIDS)})']
        lines += [f'that run as shipped, {adapted} are adapted: {adapted / len(works):.1%}.']
    for outcome, title in zip(OUTCOMES[1:], ('Refused', 'Failed', 'Not run as shipped')):
        reasons: dict[str, list[str]] = {}
        for result in results:
            if result['outcome'] == outcome:
                reasons.setdefault(result['detail'], []).append(result['config'])
        lines += ['', f'## {title}', '', '| configs | reason | for example |', '|---|---|---|']
        for reason, configs in sorted(reasons.items(), key=lambda item: -len(item[1])):
            text = ' '.join(reason.split()).replace('|', '\\|')
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
        context.Manager() as manager,
        context.Pool(args.processes, _share, (manager.dict(ran(results)),), 50) as pool,
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
        args.report.write_text(introduction() + text)


if __name__ == '__main__':
    main()
