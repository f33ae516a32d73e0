"""The checks of data sets, before anything is built or trained."""

import os.path as osp
from collections.abc import Iterator, Mapping, Sequence

from mmlocalattn.data.coco import CocoData, CocoReader, check_coco
from mmlocalattn.data.findings import Finding
from mmlocalattn.data.index_maps import MapData, check_index_maps
from mmlocalattn.data.labelled_images import LabelData, check_labelled_images

SAMPLE_DATA_COMMAND = 'python tools/make_sample_data.py'

# What a finding may be about, in the words of docs/faq.md.
KINDS = (
    'annotation file',
    'area and iscrowd',
    'batch norm',
    'boxes',
    'class names',
    'class never occurs',
    'classes',
    'colour map',
    'data set',
    'evaluator',
    'ids',
    'image size',
    'images left out',
    'images without objects',
    'labels',
    'learning rate',
    'map size',
    'masks',
    'missing image',
    'missing index map',
    'not checked',
    'not finite',
    'nothing to learn',
    'num_classes',
    'orientation',
    'picture format',
    'train and val',
    'unknown class',
    'unreadable image',
    'unreadable index map',
)

Data = CocoData | MapData | LabelData


def check_dataset(data: Data, reader: CocoReader) -> Iterator[Finding]:
    """All that can be known about the files of one data set.

    Args:
        data: What a loader reads.
        reader: Of annotation files, with how much is looked at.
    """
    if isinstance(data, CocoData):
        yield from check_coco(data, reader)
    elif isinstance(data, MapData):
        yield from check_index_maps(data, reader.budget)
    else:
        yield from check_labelled_images(data, reader.budget)


def check_overlap(train: Sequence[str], other: Sequence[str], loader: str) -> Iterator[Finding]:
    """Find images that a model is trained on and validated with.

    Args:
        train: Paths of the images of ``train_dataloader``.
        other: Of another loader.
        loader: Its name.
    """
    known = {osp.realpath(path) for path in train}
    both = {path for path in other if osp.realpath(path) in known}
    if both:
        yield Finding(
            'note',
            'train and val',
            min(both),
            '',
            f'{len(both)} of the {len(set(other))} images of {loader}, this one among them, are '
            'those of train_dataloader too: what is measured on them is no test',
        )


def check_data(cfg: Mapping, splits: Sequence[str]) -> None:
    """Check that every folder and annotation file the data loaders name exists.

    Args:
        cfg: A config with ``{split}_dataloader`` entries; a missing or None entry is not checked.
        splits: Of ``'train'``, ``'val'`` and ``'test'``.

    Raises:
        FileNotFoundError: If one does not exist; names it, its data set and how to get it.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        for dataset in leaf_datasets(loader['dataset']):
            for path in _paths(dataset):
                if not osp.exists(path):
                    raise FileNotFoundError(
                        f'{path!r}, which {split}_dataloader ({dataset["type"]}) reads, does not '
                        'exist. Put the data set there (see README.md), or make the sample data '
                        f'set with `{SAMPLE_DATA_COMMAND}` and use configs/quickstart_*.py.'
                    )


def leaf_datasets(dataset: dict) -> Iterator[dict]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets')
    if inner is None:
        yield dataset
    else:
        for wrapped in inner:
            yield from leaf_datasets(wrapped)


def _paths(dataset: Mapping) -> Iterator[str]:
    """The local files and folders of one data set, from the outermost to the innermost."""
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or {}
    prefixes = prefix.values() if isinstance(prefix, Mapping) else [prefix]
    for part in ('', dataset.get('ann_file'), *prefixes):
        path = osp.join(root, part) if part else root
        if path and '://' not in path:
            yield path
