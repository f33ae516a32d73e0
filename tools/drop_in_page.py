"""The page that `drop_in_report.py` writes."""

from collections import Counter
from collections.abc import Sequence

from mmlocalattn.collect_env import module_version

OUTCOMES = ('adapted', 'refused', 'failed', 'broken')
"""``broken``: the config as it is shipped does not load, build or run here either."""
INTRODUCTION = """# Which stock configs work

Every config that mmdet and mmsegmentation ship gets SSViT-T, and a fixed tenth of them QnA-ViT-T,
Slide-PVT-T and SASA-26. An adapted config is built with a narrow backbone, and runs a loss and a
prediction on random images. Written by `python tools/drop_in_report.py --report FILE` with
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
        folder = Path(find_spec(package).origin).parent / '.mim' / 'configs'
        for file in sorted(folder.rglob('*.py')):
            name = f'{package}::{file.relative_to(folder)}'
            if '_base_' in file.parts or 'common' in file.parts or text not in name:
                continue
            found.append((name, EVERYWHERE))
            if hashlib.sha256(name.encode()).digest()[0] < 26:  # a tenth of 256
                found += [(name, other) for other in IN_A_TENTH if other in BACKBONES]
    return found


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
