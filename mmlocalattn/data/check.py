"""A check that the data sets of a config are there, before anything is built or trained."""

import os.path as osp
from collections.abc import Iterator, Mapping, Sequence

SAMPLE_DATA_COMMAND = 'python tools/make_sample_data.py'


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


def leaf_datasets(dataset: Mapping) -> Iterator[Mapping]:
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
