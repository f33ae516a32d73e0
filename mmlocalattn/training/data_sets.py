"""The data sets of a config in plain terms, which the checks of ``mmlocalattn.data`` take."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from mmlocalattn.adapt.nodes import dicts
from mmlocalattn.data.check import Data, leaf_datasets
from mmlocalattn.data.coco import CocoData
from mmlocalattn.data.findings import Finding
from mmlocalattn.data.index_maps import MapData
from mmlocalattn.data.labelled_images import LabelData
from mmlocalattn.data.picture_files import ignores_orientation


@dataclass(frozen=True)
class Described:
    """One data set of a config, inside wrappers such as RepeatDataset.

    Attributes:
        loader: As ``'train_dataloader'``.
        entry: Its part of the config.
        classes: Of its ``metainfo``, or None.
        things: Those of them that are objects, for panoptic data; else all.
        data: What can be checked, or None for a format that no check knows.
        findings: Why it cannot be described.
    """

    loader: str
    entry: dict
    classes: Any = None
    things: Any = None
    data: Data | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def split(self) -> str:
        """``'train'``, ``'val'`` or ``'test'``."""
        return self.loader.removesuffix('_dataloader')


def describe(cfg: Config, split: str) -> Iterator[Described]:
    """Describe the data sets of one loader; pictures and annotations are not read.

    Args:
        cfg: Of mmdet, mmsegmentation, mmpretrain or another package with MMEngine's data sets.
        split: ``'train'``, ``'val'`` or ``'test'``.
    """
    loader = cfg.get(f'{split}_dataloader')
    if loader is None:
        return
    for entry in leaf_datasets(loader['dataset']):
        yield _describe(cfg, split, entry)


def classes_of(cfg: Config, split: str = 'test') -> tuple[str, ...] | None:
    """The names of the classes in a data set of a config; its files are not read.

    Args:
        cfg: Of mmdet, mmsegmentation or mmpretrain.
        split: ``'train'``, ``'val'`` or ``'test'``.

    Returns:
        None if the config has no such loader, its classes are named by folders, or the data set
        cannot be made.
    """
    loader = cfg.get(f'{split}_dataloader')
    if loader is None:
        return None
    try:
        classes = _build(cfg, next(leaf_datasets(loader['dataset']))).metainfo.get('classes')
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError):  # as _describe says
        return None
    return tuple(classes) if classes else None


def check_class_order(
    names: Sequence[str] | None, cfg: Config, owner: str, split: str = 'test'
) -> None:
    """Compare the classes that a model was trained for with those of a config's data.

    Args:
        names: What each label of the model means, if that is known.
        cfg: Whose data, or models that draw, take label i for its own class i.
        owner: Of the names, for the error.
        split: Of the data: ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        ValueError: If these are the same names in another order.
    """
    own = classes_of(cfg, split)
    if not names or not own or sorted(names) != sorted(own, key=str):
        return
    for label, (there, here) in enumerate(zip(names, own)):
        if there != here:
            raise ValueError(
                f'{owner} has its classes in another order than the {split} data of '
                f'{cfg.filename}: label {label} is {there!r} there and {here!r} here. Write '
                'metainfo.classes in the order of the training'
            )


def _describe(cfg: Config, split: str, entry: dict) -> Described:
    loader = f'{split}_dataloader'

    def finding(severity: Any, kind: str, problem: str, fix: str = '') -> Finding:
        return Finding(severity, kind, f'{loader}.dataset', type_name(entry), problem, fix)

    try:
        dataset = _build(cfg, entry)
        remote = '://' in f'{dataset.ann_file}{dataset.data_prefix}' or entry.get('backend_args')
        data = None if remote else _data(cfg, split, entry, dataset)
    except TypeError as error:  # of a class that takes other arguments than MMEngine's
        unknown = finding('note', 'not checked', f'its files are not checked ({error})')
        return Described(loader, entry, findings=(unknown,))
    except (AssertionError, KeyError, RuntimeError, ValueError) as error:
        text = ' '.join(str(error.args[0] if error.args else error).split())
        wrong = finding('error', 'data set', f'it cannot be made: {text}')
        return Described(loader, entry, findings=(wrong,))
    meta = dataset.metainfo
    classes = meta.get('classes')
    common = dict(loader=loader, entry=entry, things=meta.get('thing_classes') or classes)
    if remote:
        unknown = finding('note', 'not checked', 'its files are not on this machine')
        return Described(**common, classes=classes, findings=(unknown,))
    if isinstance(data, LabelData):  # named by their folders, which are read by now
        classes = data.classes
        common['things'] = classes
    if data is None:
        unknown = finding('note', 'not checked', 'no check knows this format: see browse_dataset')
        return Described(**common, classes=classes, findings=(unknown,))
    return Described(**common, classes=classes, data=data)


def type_name(part: Mapping) -> str:
    """The class that a part of a config names, without its scope or module."""
    kind = part.get('type', '')
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]


def _build(cfg: Config, entry: Mapping) -> Any:
    """The data set without its pipeline, before it has read anything."""
    bare: dict[str, Any] = {**entry, 'pipeline': [], 'lazy_init': True}
    if cfg.get('default_scope'):
        bare['_scope_'] = cfg.default_scope
    return DATASETS.build(bare)


def _data(cfg: Config, split: str, entry: Mapping, dataset: Any) -> Data | None:
    """What the checks need, for the formats they know, by the classes that read them."""
    names = [cls.__name__ for cls in type(dataset).__mro__]
    pipeline = list(dicts(entry.get('pipeline') or []))
    images = _first(pipeline, 'LoadImageFromFile')
    raw = ignores_orientation(
        images.get('color_type', 'color'), images.get('imdecode_backend', 'cv2')
    )
    common: dict[str, Any] = dict(loader=f'{split}_dataloader', training=split == 'train')
    if _owner(dataset, 'load_data_list') == _owner(dataset, 'parse_data_info') == 'CocoDataset':
        filters = dataset.filter_cfg or {}
        return CocoData(
            **common,
            ann_file=dataset.ann_file,
            images=dataset.data_prefix.get('img') or '',
            classes=dataset.metainfo.get('classes') or (),
            masks=_needs_masks(cfg, split, pipeline),
            raw=raw,
            filter_empty=bool(filters.get('filter_empty_gt')),
            min_size=filters.get('min_size', 0),
        )
    if 'BaseSegDataset' in names:
        default = 'pillow' if cfg.get('default_scope') == 'mmseg' else 'cv2'
        head = (cfg.get('model') or {}).get('decode_head') or {}
        head = head[-1] if isinstance(head, (list, tuple)) else head
        loads = _first(pipeline, 'LoadAnnotations')  # a test set may have no maps
        return MapData(
            **common,
            pairs=[
                (item['img_path'], item.get('seg_map_path') if loads else None)
                for item in dataset.load_data_list()
            ],
            classes=dataset.metainfo.get('classes') or (),
            reduce_zero_label=bool(dataset.reduce_zero_label),
            ignore_index=head.get('ignore_index', 255),
            label_map=dataset.label_map,
            backend=loads.get('imdecode_backend', default),
            raw=raw,
            folder=dataset.data_prefix.get('img_path') or '',
            suffix=dataset.img_suffix,
        )
    if 'CustomDataset' in names and getattr(dataset, 'with_label', True):
        samples = [(item['img_path'], item['gt_label']) for item in dataset.load_data_list()]
        head = (cfg.get('model') or {}).get('head') or {}
        number = head.get('num_classes', 0)
        names_of_labels = dataset.metainfo.get('classes') or tuple(map(str, range(number)))
        return LabelData(**common, samples=samples, classes=names_of_labels)
    return None


def _first(pipeline: list[dict], name: str) -> Mapping:
    return next((step for step in pipeline if type_name(step) == name), {})


def _owner(dataset: Any, method: str) -> str:
    """The class whose method a data set has."""
    return next((cls.__name__ for cls in type(dataset).__mro__ if method in vars(cls)), '')


def _needs_masks(cfg: Config, split: str, pipeline: list[dict]) -> bool:
    metrics = dicts(cfg.get(f'{split}_evaluator') if split != 'train' else None)
    return any(step.get('with_mask') for step in pipeline) or any(
        'segm' in metric.get('metric', ()) for metric in metrics
    )


def evaluator_files(cfg: Config, split: str) -> Iterator[dict]:
    """The metrics of a split that read an annotation file of their own, ``ann_file``."""
    for metric in dicts(cfg.get(f'{split}_evaluator')):
        if metric.get('ann_file') and '://' not in metric['ann_file']:
            yield metric


def image_paths(data: Data, contents: Mapping[str, dict | None]) -> list[str]:
    """The pictures of a data set, as far as they are known.

    Args:
        data: The data set.
        contents: Of the annotation files that were read.
    """
    if isinstance(data, MapData):
        return [picture for picture, _ in data.pairs]
    if isinstance(data, LabelData):
        return [picture for picture, _ in data.samples]
    content = contents.get(data.ann_file)
    images = (content or {}).get('images', ())
    return [os.path.join(data.images, image['file_name']) for image in images]
