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
