"""Write model-index.yml and the metafiles in configs/, which mim reads, from the configs.

Published numbers and released weights come from a config's header, whose form docs/add_backbone.md
gives, what a paper's configs share from ``FAMILIES`` below, and the rest from the loaded config.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mmlocalattn.command_line import one_line_errors
from mmlocalattn.files import whole_file

if TYPE_CHECKING:
    from mmengine.config import Config

ROOT = Path(__file__).parents[2]


class Family(NamedTuple):
    """What the configs of one paper share."""

    name: str
    stem: str  # of configs/metafile_<stem>.yml
    backbones: tuple[str, ...]
    arxiv: str
    title: str
    code: str | None = None  # of the authors


FAMILIES = (
    Family(
        'SSViT',
        'ssvit',
        ('SSViT',),
        '2405.13335',
        'Vision Transformer with Sparse Scan Prior',
        'https://github.com/qhfan/SSViT',
    ),
    Family(
        'NAT',
        'nat',
        ('NAT',),
        '2204.07143',
        'Neighborhood Attention Transformer',
        'https://github.com/SHI-Labs/Neighborhood-Attention-Transformer',
    ),
    Family(
        'DiNAT',
        'nat',
        ('DiNAT',),
        '2209.15001',
        'Dilated Neighborhood Attention Transformer',
        'https://github.com/SHI-Labs/Neighborhood-Attention-Transformer',
    ),
    Family(
        'Slide-Transformer',
        'slide_transformer',
        ('SlideCSwin', 'SlideNAT', 'SlidePVT', 'SlidePVTv2', 'SlideSwin'),
        '2304.04237',
        'Slide-Transformer: Hierarchical Vision Transformer with Local Self-Attention',
        'https://github.com/LeapLabTHU/Slide-Transformer',
    ),
    Family(
        'QnA-ViT',
        'qna_vit',
        ('QnAViT',),
        '2112.11435',
        'Learned Queries for Efficient Local Attention',
        'https://github.com/moabarar/qna',
    ),
    Family(
        'SASA',
        'sasa_resnet',
        ('SASAResNet',),
        '1906.05909',
        'Stand-Alone Self-Attention in Vision Models',
    ),
)
# What a file name calls the data.
DATASETS = {
    'coco': 'COCO',
    'ade20k': 'ADE20K',
    'cityscapes': 'Cityscapes',
    'imagenet': 'ImageNet-1k',
}
# What a header calls a metric: the task and what a metafile calls it.
METRICS = {
    'box AP': ('Object Detection', 'Published box AP'),
    'mask AP': ('Instance Segmentation', 'Published mask AP'),
    'PQ': ('Panoptic Segmentation', 'Published PQ'),
    'mIoU': ('Semantic Segmentation', 'Published mIoU'),
    'multi-scale mIoU': ('Semantic Segmentation', 'Published mIoU (multi-scale)'),
    'top-1': ('Image Classification', 'Published Top 1 Accuracy'),
}
PREAMBLE = """\
# Made by tools/dev/metafiles.py from the configs: change their headers, not this file.
# Read by `mim search`. Published: by the paper, not reproduced with this package.
# Converted From: the authors' weights, which `tools/convert_checkpoint.py` converts.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--check', action='store_true', help='write nothing, name what differs')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    check = parse_args(argv).check
    from mmlocalattn.training import load_config

    with one_line_errors():
        wanted: dict[Path, str | None] = {**render(load_config)}
    for file in ROOT.glob('configs/*.yml'):
        wanted.setdefault(file, None)
    differing = [file for file, text in wanted.items() if read(file) != text]
    for file in differing:
        print(f'{file.relative_to(ROOT)}: {"differs from the configs" if check else "written"}')
        text = wanted[file]
        if not check:
            write(file, text)
    if check and differing:
        raise SystemExit('error: run python tools/dev/metafiles.py')


def write(file: Path, text: str | None) -> None:
    if text is None:
        file.unlink()
    else:
        with whole_file(file) as partial:
            partial.write_text(text)


def read(file: Path) -> str | None:
    return file.read_text() if file.is_file() else None


def published_configs() -> list[Path]:
    """The configs that follow a paper, which are all but the quickstart's."""
    files = sorted((ROOT / 'configs').glob('*.py'))
    return [file for file in files if not file.name.startswith('quickstart_')]


def render(load: Callable[[str], 'Config']) -> dict[Path, str]:
    """The text of each metafile and of model-index.yml.

    Args:
        load: What reads a config file.

    Raises:
        ValueError: If a header has not the form, or a backbone belongs to no family.
    """
    models: dict[Family, list[dict]] = {family: [] for family in FAMILIES}
    for file in published_configs():
        family, entry = model_entry(file, load(str(file)))
        models[family].append(entry)
    texts = {}
    for stem in dict.fromkeys(family.stem for family in FAMILIES):
        families = [family for family in FAMILIES if family.stem == stem]
        collections = [collection_entry(family) for family in families]
        entries = [entry for family in families for entry in models[family]]
        texts[ROOT / 'configs' / f'metafile_{stem}.yml'] = PREAMBLE + '\n'.join(
            [dump({'Collections': collections}), 'Models:', *(dump([entry]) for entry in entries)]
        )
    imports = {'Import': [str(file.relative_to(ROOT)) for file in texts]}
    texts[ROOT / 'model-index.yml'] = dump(imports, default_flow_style=False)
    return texts


def dump(node: dict | list, default_flow_style: bool | None = None) -> str:
    import yaml

    return yaml.safe_dump(node, sort_keys=False, default_flow_style=default_flow_style, width=1000)


def collection_entry(family: Family) -> dict:
    return {
        'Name': family.name,
        'Paper': {'URL': f'https://arxiv.org/abs/{family.arxiv}', 'Title': family.title},
    }


def model_entry(file: Path, cfg: 'Config') -> tuple[Family, dict]:
    """The family of a config and its entry in the metafile."""
    backbone = unscoped(cfg.model.backbone.type)
    family = next((family for family in FAMILIES if backbone in family.backbones), None)
    if family is None:
        raise ValueError(
            f'{file.name}: no paper has the backbone {backbone!r}: add it to FAMILIES in '
            f'tools/dev/metafiles.py'
        )
    published, weights = read_header(file)
    dataset = next(DATASETS[part] for part in file.stem.split('_') if part in DATASETS)
    entry = {
        'Name': file.stem,
        'In Collection': family.name,
        'Config': f'configs/{file.name}',
        'Metadata': {'Training Data': dataset, **training(cfg), 'Architecture': parts(cfg)},
    }
    if published:
        entry['Results'] = results(published, dataset)
    if weights:
        entry['Converted From'] = {'Weights': weights, 'Code': family.code}
    return family, entry


def read_header(file: Path) -> tuple[dict[str, float], str | None]:
    """The published metrics that the comment at the top of a config names, and the weights' URL."""
    header = ''.join(re.findall(r'\A(?:#.*\n)+', file.read_text()))
    lines = re.findall(r'^# Published: ([^(]+?)\s+(?:# )?\(', header, re.MULTILINE)
    if len(lines) != 1:
        raise ValueError(
            f'{file.name}: the header has {len(lines)} lines "# Published: ... (...)", not one'
        )
    values = re.sub(r'\s+(# )?', ' ', lines[0])
    published = {}
    for value in [] if values == 'no table entry' else values.split(', '):
        number, _, metric = value.partition(' ')
        if metric not in METRICS or not re.fullmatch(r'\d+\.\d+', number):
            raise ValueError(
                f'{file.name}: the header publishes {value!r}, which is not a number and one of '
                f'{", ".join(METRICS)}, nor "no table entry"'
            )
        published[metric] = float(number)
    weights = re.findall(r'^# Weights: *(.*)$', header, re.MULTILINE)
    if len(weights) > 1 or not all(re.fullmatch(r'https://\S+', url) for url in weights):
        raise ValueError(f'{file.name}: the header has weights {weights}, not one https address')
    return published, weights[0] if weights else None


def results(published: dict[str, float], dataset: str) -> list[dict]:
    """One entry for each task."""
    tasks: dict[str, dict[str, float]] = {}
    for metric, value in published.items():
        task, name = METRICS[metric]
        tasks.setdefault(task, {})[name] = value
    return [
        {'Task': task, 'Dataset': dataset, 'Metrics': metrics} for task, metrics in tasks.items()
    ]


def training(cfg: 'Config') -> dict:
    """Length, images in a step, and techniques."""
    loop = cfg.train_cfg
    length = {'Epochs': loop.max_epochs} if 'max_epochs' in loop else {'Iterations': loop.max_iters}
    schedulers = cfg.param_scheduler
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    decays = (unscoped(scheduler.type) for scheduler in schedulers)
    amp = ['Mixed Precision'] if cfg.optim_wrapper.type == 'AmpOptimWrapper' else []
    return {
        **length,
        'Batch Size': cfg.auto_scale_lr.base_batch_size,
        'Training Techniques': [cfg.optim_wrapper.optimizer.type, *amp, *dict.fromkeys(decays)],
    }


def parts(cfg: 'Config') -> list[str]:
    """The types of the model and its parts."""
    model = cfg.model
    names = ('backbone', 'neck', 'decode_head', 'bbox_head', 'panoptic_head')
    return [unscoped(part.type) for part in (model, *(model[n] for n in names if n in model))]


def unscoped(type_name: str) -> str:
    return type_name.rpartition('.')[2]


if __name__ == '__main__':
    main()
