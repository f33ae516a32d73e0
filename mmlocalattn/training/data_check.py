"""The checks of a run's data, before its model is built."""

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

from mmlocalattn.data.check import check_data, check_dataset, check_overlap
from mmlocalattn.data.classes import check_categories, check_names, check_num_classes
from mmlocalattn.data.coco import (
    CocoData,
    CocoReader,
    check_same_images,
    completed,
    read_first,
)
from mmlocalattn.data.findings import Budget, Finding, Severity, first_of_each_kind
from mmlocalattn.data.index_maps import MapData
from mmlocalattn.data.labelled_images import LabelData
from mmlocalattn.files import whole_file
from mmlocalattn.training.data_sets import Described, describe, evaluator_files, image_paths
from mmlocalattn.training.model_check import (
    check_batch,
    check_class_weights,
    check_masks,
    check_single_class,
    class_settings,
)
from mmlocalattn.training.processes import is_first_process

CHECK_ALL = 'python tools/analysis/check_data.py'


def check_sample(
    cfg: Config, splits: Sequence[str], with_model: bool = True, budget: Budget | None = None
) -> None:
    """Check what a run reads, in a few seconds, and say what was found and what was skipped.

    Annotations that lack ``area`` or ``iscrowd`` get them: whole files are written into the work
    dir, and the config reads those.

    Args:
        cfg: Its annotation files may be changed, in place.
        splits: Of ``'train'``, ``'val'`` and ``'test'``.
        with_model: Check whether the model fits the data, too.
        budget: How much is looked at; None for a sample that takes a few seconds.

    Raises:
        FileNotFoundError: If a file or folder that is read does not exist.
        ValueError: If something else is wrong: says the first in one line, and how many there are.
    """
    budget = budget or Budget(items=100, megabytes=20, seconds=5)
    reader = CocoReader(budget)
    described = describe_all(cfg, splits)
    findings = list(run_findings(cfg, described, reader, with_model))
    errors = [finding for finding in findings if finding.severity == 'error']
    config = cfg.filename or 'CONFIG'
    if errors:
        more = f' ({len(errors) - 1} more: {CHECK_ALL} {config})' if len(errors) > 1 else ''
        raise ValueError(errors[0].message + more)
    complete_annotations(cfg, described, reader)
    if is_first_process():
        print(*first_of_each_kind(findings, 1), sep='\n', end='\n' if findings else '')
        if budget.skipped:
            print(f'not checked: {"; ".join(budget.skipped)} ({CHECK_ALL} {config} does)')


def check_class_names(cfg: Config) -> None:
    """Compare the names of classes in the test data with their annotation file.

    A file that is not there or cannot be read says nothing: only its data are useless.

    Args:
        cfg: Whose model names what it finds; its data need not be there.

    Raises:
        ValueError: If a name is not that of the file, or their order is another; has both lists.
    """
    if cfg.get('default_scope') != 'mmdet':  # the other toolboxes name no labels in files
        return
    for dataset in describe(cfg, 'test'):
        data = dataset.data
        if isinstance(data, CocoData) and os.path.isfile(data.ann_file):
            names = _category_names(data.ann_file)
            for found in check_categories(data.ann_file, names, data.classes) if names else ():
                if found.severity == 'error':
                    raise ValueError(found.message)


def _category_names(ann_file: str) -> list:
    try:
        content = CocoReader(Budget(megabytes=20)).read(ann_file)
        if content is None:  # too large
            content = {'categories': read_first(ann_file, 'categories', 100_000)}
    except (OSError, ValueError):
        return []
    entries = content['categories']
    return [it['name'] for it in entries if isinstance(it, dict) and 'name' in it]


def describe_all(cfg: Config, splits: Sequence[str]) -> dict[str, list[Described]]:
    """The data sets of each split, whose files exist.

    Raises:
        FileNotFoundError: If a file or folder that is read does not exist.
    """
    check_data(cfg, splits)
    _check_evaluator_files(cfg, splits)
    return {split: list(describe(cfg, split)) for split in splits}


def run_findings(
    cfg: Config,
    described: Mapping[str, list[Described]],
    reader: CocoReader,
    with_model: bool = True,
) -> Iterator[Finding]:
    """All that is found, data set by data set.

    Args:
        cfg: The config.
        described: Of :func:`describe_all`.
        reader: Of annotation files, with how much is looked at.
        with_model: Check whether the model fits the data, too.
    """
    everything = [dataset for datasets in described.values() for dataset in datasets]
    checked = set()
    for dataset in everything:
        yield from dataset.findings
        if dataset.data is not None:
            yield from check_names(dataset.loader, dataset.data.classes)
    yield from _check_same_classes(everything)
    if with_model:
        yield from _check_model(cfg, everything)
    for split, datasets in described.items():
        for dataset in datasets:
            key = json.dumps(dataset.entry, default=str, sort_keys=True), split == 'train'
            if dataset.data is not None and key not in checked:  # val and test may be one
                checked.add(key)
                yield from check_dataset(dataset.data, reader)
        if len(datasets) == 1 and isinstance(datasets[0].data, CocoData):
            for metric in evaluator_files(cfg, split) if split != 'train' else ():
                yield from check_same_images(datasets[0].data, metric['ann_file'], reader)
    if 'train' in described:
        yield from _check_overlaps(described, reader)


def _check_evaluator_files(cfg: Config, splits: Sequence[str]) -> None:
    for split in splits:
        for metric in evaluator_files(cfg, split) if split != 'train' else ():
            if not os.path.isfile(metric['ann_file']):
                raise FileNotFoundError(
                    f'{metric["ann_file"]!r}, which {split}_evaluator reads, does not exist. Set '
                    f'{split}_evaluator.ann_file to the annotations of {split}_dataloader.'
                )


def _check_same_classes(datasets: Sequence[Described]) -> Iterator[Finding]:
    """Find loaders whose data have other classes than those of the first."""
    named = [dataset for dataset in datasets if dataset.classes]
    for dataset in named[1:]:
        if tuple(dataset.classes) != tuple(named[0].classes):
            yield Finding(
                'error',
                'classes',
                f'{dataset.loader}.dataset.metainfo.classes',
                '',
                f'{tuple(dataset.classes)}, but those of {named[0].loader} are '
                f'{tuple(named[0].classes)}: a label would mean two things',
                'Give all data sets the same metainfo',
            )
            return


def _check_model(cfg: Config, datasets: Sequence[Described]) -> Iterator[Finding]:
    named = next((dataset for dataset in datasets if dataset.things), None)
    if named is not None and not isinstance(named.things, str):
        more_is: Severity = 'warning' if isinstance(named.data, LabelData) else 'error'
        yield from check_num_classes(named.loader, named.things, class_settings(cfg), more_is)
    yield from check_class_weights(cfg)
    yield from check_single_class(cfg)
    if any(isinstance(dataset.data, CocoData) for dataset in datasets):
        yield from check_masks(cfg, sorted({dataset.split for dataset in datasets}))
    if any(dataset.split == 'train' for dataset in datasets):
        sizes = [
            len(dataset.data.pairs if isinstance(dataset.data, MapData) else dataset.data.samples)
            for dataset in datasets
            if dataset.split == 'train' and isinstance(dataset.data, (MapData, LabelData))
        ]
        yield from check_batch(cfg, sizes[0] if len(sizes) == 1 else None)


def _check_overlaps(
    described: Mapping[str, list[Described]], reader: CocoReader
) -> Iterator[Finding]:
    paths = {
        split: [
            path
            for dataset in datasets
            if dataset.data is not None
            for path in image_paths(dataset.data, reader.contents)
        ]
        for split, datasets in described.items()
    }
    for split in paths:
        if split != 'train':
            yield from check_overlap(paths['train'], paths[split], f'{split}_dataloader')


def complete_annotations(
    cfg: Config, described: Mapping[str, list[Described]], reader: CocoReader
) -> None:
    """Give annotations that lack ``area`` or ``iscrowd`` what MMDetection and pycocotools ask for.

    Args:
        cfg: Its loaders and evaluators read whole files, written into the work dir, in place of
            those that lack something.
        described: Of :func:`describe_all`; its entries are those of the config.
        reader: Of the files.
    """
    folder = Path(cfg.get('work_dir') or f'work_dirs/{Path(cfg.filename or "run").stem}') / 'data'
    for split, datasets in described.items():
        users = [
            (dataset.entry, dataset.data.ann_file)
            for dataset in datasets
            if isinstance(dataset.data, CocoData)
        ]
        if users and split != 'train':
            users += [(metric, metric['ann_file']) for metric in evaluator_files(cfg, split)]
        for user, path in users:
            content = reader.read(path)
            whole = completed(content) if content else None
            if whole is not None:
                # The checksum tells apart files of the same name.
                name = f'{Path(path).stem}_{zlib.crc32(path.encode()):08x}.json'
                target = folder.resolve() / name
                if is_first_process():
                    with whole_file(target) as partial:
                        partial.write_text(json.dumps(whole))
                user['ann_file'] = str(target)


def check_all(
    cfg: Config, splits: Sequence[str], progress: Callable[[Iterable, str], Iterable] | None = None
) -> list[Finding]:
    """Everything that :func:`check_sample` samples, on all files.

    Args:
        cfg: Not changed.
        splits: Of ``'train'``, ``'val'`` and ``'test'``.
        progress: Wraps an iteration, given what it goes over and what that is called.

    Raises:
        FileNotFoundError: If a file or folder that is read does not exist.
    """
    reader = CocoReader(Budget(progress=progress))
    return list(run_findings(cfg, describe_all(cfg, splits), reader))
