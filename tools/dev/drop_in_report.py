"""Swap our backbones into every config that toolboxes ship, and see which models then work.

Each config gets SSViT-T, and a fixed tenth of them other backbones too. An adapted config is built
with a narrow backbone and runs a loss and a prediction on random images; a model that several
configs share, as those of two schedules do, runs once. Results are appended to a file as they come,
so that an interrupted run goes on where it stopped.
"""

import argparse
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import output_file, positive
from mmlocalattn.files import whole_file

PACKAGES = ['mmdet', 'mmseg']
OUTCOMES = ('adapted', 'refused', 'failed', 'broken')
"""``broken``: the config as it is shipped does not load, build or run here either."""
INTRODUCTION = """# Which stock configs work

Every config that {packages} ship{names} gets SSViT-T, and a fixed tenth of them QnA-ViT-T,
Slide-PVT-T and SASA-26. An adapted config is built with a narrow backbone, and runs a loss and a
prediction on random images. Written with {versions} by

```bash
python tools/dev/drop_in_report.py {arguments}--report FILE
```

"""
PYRAMIDS = (
    *('ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNeXt', 'Res2Net', 'ResNeSt', 'RegNet', 'ConvNeXt'),
    *('SwinTransformer', 'PyramidVisionTransformer', 'PyramidVisionTransformerV2'),
)
"""Backbones that should be exchangeable, of which the report gives the share."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--packages', nargs='+', default=PACKAGES)
    parser.add_argument(
        '--filter', nargs='+', default=[''], help='only configs whose path contains any of these'
    )
    parser.add_argument('--processes', type=positive, default=os.cpu_count())
    parser.add_argument(
        '--results',
        type=output_file,
        default='work_dirs/drop_in.jsonl',
        help='results so far, continued',
    )
    parser.add_argument('--report', type=output_file, help='Markdown file to write')
    return parser.parse_args(argv)


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


def introduction(packages: Sequence[str], texts: Sequence[str]) -> str:
    """What was done, with what."""
    from mmlocalattn.collect_env import module_version

    arguments = '' if packages == PACKAGES else f'--packages {" ".join(packages)} '
    arguments += f'--filter {" ".join(texts)} ' if any(texts) else ''
    modules = dict.fromkeys(('torch', 'mmcv', 'mmdet', *packages))
    return INTRODUCTION.format(
        packages=' and '.join(filter(None, [', '.join(packages[:-1]), packages[-1]])),
        names=f' under a name with {" or ".join(texts)}' if any(texts) else '',
        arguments=arguments,
        versions=', '.join(map(module_version, modules)),
    )


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
    from drop_in.trying import share, tasks, try_config
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    wanted = tasks(args.packages, args.filter)
    if not wanted:
        raise SystemExit(f'error: no config of {args.packages} contains {args.filter!r}')
    results = read_results(args.results)
    missing = [task for task in wanted if task not in results]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn())
    context = multiprocessing.get_context('spawn')
    processes = max(1, min(args.processes, len(missing)))
    with (
        Progress(*columns, TimeRemainingColumn()) as progress,
        context.Manager() as manager,
        context.Pool(processes, share, (manager.dict(ran(results)),), 50) as pool,
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
        with whole_file(args.report) as partial:
            partial.write_text(introduction(args.packages, args.filter) + text)


if __name__ == '__main__':
    main()
