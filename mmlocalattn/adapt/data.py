"""Let any detection, segmentation or classification config learn a user's own data.

:func:`fit_to_data` writes what a data set of :func:`~mmlocalattn.data.folders.read_folder` has to
say into every place of a config for mmdet, mmseg or mmpretrain that depends on it.
"""

import copy
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from mmlocalattn.adapt.nodes import dicts
from mmlocalattn.adapt.swap import CannotAdapt
from mmlocalattn.data.folders import FolderData, Split
from mmlocalattn.data.records import Task

_SCOPES: dict[Task, str] = {
    'detection': 'mmdet',
    'instance segmentation': 'mmdet',
    'semantic segmentation': 'mmseg',
    'classification': 'mmpretrain',
}
_LEARN = {
    'mmdet': 'boxes or masks of objects',
    'mmseg': 'index maps (semantic segmentation)',
    'mmpretrain': 'a class for each image',
}
_TRY = {
    'detection': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'instance segmentation': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'semantic segmentation': 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'classification': 'mmpretrain::resnet/resnet50_8xb32_in1k.py',
}
_CLASS_AGNOSTIC = ('rpn_head',)  # keys of parts whose number of classes says object or none
_BINARY = ('STDCHead',)  # heads that tell borders
_MASK_PARTS = ('mask_head', 'segm_head', 'panoptic_head')
_MASK_HEADS = ('RTMDetInsHead', 'RTMDetInsSepBNHead')
_PANOPTIC = ('PanopticFPN', 'TwoStagePanopticSegmentor')
_TOP = 5  # classes among which a classifier is right, if there are more
_OTHER_DATA = {
    'language_model': 'it finds what a text names',
    'text_encoder': 'it finds what a text names',
    'teacher_ckpt': 'it learns from a model of other classes (teacher_ckpt)',
    'semi_train_cfg': 'it learns from images without annotations too (semi-supervised)',
    'tracker': 'it learns from videos',
}


def task_of(cfg: Config) -> Task | None:
    """What a config learns, boxes and masks of objects alike; None if that is nothing of a folder.

    Args:
        cfg: With ``default_scope``.
    """
    return next(
        (task for task, scope in _SCOPES.items() if scope == cfg.get('default_scope')), None
    )


def fit_to_data(cfg: Config, data: FolderData) -> Config:
    """Write a data set into a config.

    Fitted are the classes that the heads, their losses and the preprocessor count, the data sets
    inside all loaders, which lose wrappers that repeat or join, their pipelines, and the
    evaluators. Model, augmentation and recipe stay those of the config.

    Args:
        cfg: Of mmdet, mmseg or mmpretrain (``default_scope``). Not changed.
        data: What to learn.

    Returns:
        A new config.

    Raises:
        CannotAdapt: If the config needs what the data do not have.
    """
    cfg = copy.deepcopy(cfg)
    scope = cfg.get('default_scope')
    _check_task(scope, data)
    _check_model(cfg, data)
    _fit_model(cfg, data)
    masks = data.masks and _predicts_masks(cfg.model)
    leaf_options = {'mmdet': _coco, 'mmseg': _index_maps, 'mmpretrain': _labelled}[scope]
    for split in ('train', 'val', 'test'):
        part = data.splits.get(split) or data.splits['val']
        loader = _loader(cfg, split)
        loader['dataset'] = _fit_dataset(
            loader['dataset'], {**leaf_options(data, part), **_mode(scope, split)}
        )
        if split == 'train':
            continue
        metric = _metric(scope, data, part, masks)
        cfg[f'{split}_evaluator'] = metric
        cfg[f'{split}_cfg'] = dict(type=f'{split.capitalize()}Loop')
    for pipeline in _pipelines(cfg):
        for step in dicts(pipeline):
            _fit_step(step, scope, data, masks)
    if 'metainfo' in cfg:
        cfg.metainfo = _metainfo(data)
    return Config(cfg.to_dict(), filename=cfg.filename)


def _check_task(scope: str | None, data: FolderData) -> None:
    wanted = _SCOPES[data.task]
    if scope != wanted:
        learns = _LEARN.get(str(scope), f'nothing of it (default_scope is {scope!r})')
        raise CannotAdapt(
            f'the config learns {learns}, and {data.folder} holds {_LEARN[wanted]}: take one of '
            f'{wanted}, as {_TRY[data.task]}'
        )


def _check_model(cfg: Config, data: FolderData) -> None:
    parts = list(dicts(cfg.model))
    for key, reason in _OTHER_DATA.items():
        if any(part.get(key) for part in parts):
            raise CannotAdapt(f'{reason}: take another config, as {_TRY[data.task]}')
    steps = [step.get('type') for pipeline in _pipelines(cfg) for step in dicts(pipeline)]
    if 'LoadProposals' in steps:
        raise CannotAdapt(
            'it reads proposals from a file: take one that makes them, as '
            'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
        )
    if cfg.model.type in _PANOPTIC:
        raise CannotAdapt(
            f'its {cfg.model.type} learns regions without objects too (panoptic), and '
            f'{data.folder} has objects alone: take {_TRY[data.task]}'
        )
    needs_masks = _predicts_masks(cfg.model) and any(
        step.get('with_mask') or step.get('type') == 'LoadPanopticAnnotations'
        for pipeline in _pipelines(cfg)
        for step in dicts(pipeline)
    )
    if needs_masks and not data.masks:
        raise CannotAdapt(
            f'it learns masks, and {data.folder} ({data.source}) has boxes alone: take a config '
            f'without masks, as {_TRY["detection"]} or '
            'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py, or annotate polygons'
        )


def _predicts_masks(model: dict) -> bool:
    return any(
        any(part.get(key) for key in _MASK_PARTS) or part.get('type') in _MASK_HEADS
        for part in dicts(model)
    )


def _fit_model(cfg: Config, data: FolderData) -> None:
    """Write the number of classes into the model, its losses and preprocessors."""
    number = len(data.classes)
    model = cfg.model
    for part in dicts(model):  # HTC's branch that learns maps of stuff, optional in mmdet
        if (part.get('semantic_head') or {}).get('type') == 'FusedSemanticHead':
            part.pop('semantic_head')
            part.pop('semantic_roi_extractor', None)
    counted = list(_class_counts(model))
    if not counted:
        raise CannotAdapt(
            f'its {model.get("type")} has no number of classes: take {_TRY[data.task]}'
        )
    for part, old in counted:
        _set_count(part, number)
        _fit_class_weights(part, old, number)
    if any('num_things_classes' in part for part, _ in counted):
        model.test_cfg = {**(model.get('test_cfg') or {}), 'panoptic_on': False}
        model.test_cfg.update(semantic_on=False, instance_on=True)
    for part in dicts([model, cfg.get('data_preprocessor')]):
        if part.get('pad_seg'):
            part['pad_seg'] = False
        if isinstance(part.get('topk'), (tuple, list)) and max(part['topk']) > number:
            part['topk'] = (1,)
        if part.get('out_channels') == 1 and 'threshold' in part and number != 2:
            part.update(out_channels=number, threshold=None)
    preprocessor = cfg.get('data_preprocessor')
    if preprocessor and 'num_classes' in preprocessor:
        preprocessor['num_classes'] = number


def _class_counts(node: Any) -> Iterator[tuple[dict, int]]:
    """Every part of a model that counts the classes of the data, with its number of them."""
    if isinstance(node, dict):
        if node.get('type') not in _BINARY:
            if isinstance(node.get('num_things_classes'), int):
                yield node, node['num_things_classes'] + node.get('num_stuff_classes', 0)
            elif isinstance(node.get('num_classes'), int):
                yield node, node['num_classes']
        node = [value for key, value in node.items() if key not in _CLASS_AGNOSTIC]
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _class_counts(child)


def _set_count(part: dict, number: int) -> None:
    if 'num_things_classes' in part:
        part.update(num_things_classes=number, num_stuff_classes=0)
    if 'num_classes' in part:
        part['num_classes'] = number


def _fit_class_weights(head: dict, old: int, new: int) -> None:
    """Give the losses of a head as many weights as it has classes, and none for none."""
    for part in dicts(head):
        weights = part.get('class_weight')
        if not isinstance(weights, (list, tuple)):
            continue
        extra = list(weights[old:])  # of no object
        if len(set(weights[:old])) == 1:
            part['class_weight'] = [weights[0]] * new + extra
        elif len(weights) != new + len(extra):
            part['class_weight'] = None  # each was of one of the old classes


def _loader(cfg: Config, split: str) -> dict:
    """The loader of a split; a config without one for testing gets that for validation."""
    name = f'{split}_dataloader'
    if not cfg.get(name):
        other = cfg.get('val_dataloader') or cfg.get('test_dataloader')
        if split == 'train' or not other:
            raise CannotAdapt(f'it has no {name}: take one that trains and validates')
        cfg[name] = copy.deepcopy(other)
    return cfg[name]


def _fit_dataset(dataset: dict, leaf_options: dict) -> dict:
    """The data set in the place of a data set of a config, which may be a wrapper.

    A wrapper that mixes images stays, without those that repeat, balance or join data sets.
    """
    inner = dataset.get('dataset')
    if inner is None and dataset.get('datasets'):
        inner = dataset['datasets'][0]
    if isinstance(inner, (list, tuple)):
        inner = inner[0]
    if inner is None:
        return {**leaf_options, 'pipeline': dataset.get('pipeline', [])}
    fitted = _fit_dataset(inner, leaf_options)
    if dataset['type'].rpartition('.')[2] == 'MultiImageMixDataset':
        return {**dataset, 'dataset': fitted}
    return fitted


def _metainfo(data: FolderData) -> dict:
    return dict(classes=data.classes, palette=[tuple(color) for color in data.palette])


def _coco(data: FolderData, part: Split) -> dict:
    return dict(
        type='CocoDataset',
        metainfo=_metainfo(data),
        ann_file=part.annotations,
        data_prefix=dict(img=part.images + '/'),
    )


def _index_maps(data: FolderData, part: Split) -> dict:
    return dict(
        type='BaseSegDataset',
        metainfo=_metainfo(data),
        ann_file=part.annotations,
        data_prefix=dict(img_path=part.images, seg_map_path=part.maps),
        img_suffix=data.img_suffix,
        seg_map_suffix=data.seg_map_suffix,
        reduce_zero_label=data.reduce_zero_label,
    )


def _labelled(data: FolderData, part: Split) -> dict:
    return dict(
        type='CustomDataset',
        metainfo=_metainfo(data),
        ann_file=part.annotations,
        data_prefix=part.images,
        with_label=True,
    )


def _mode(scope: str, split: str) -> dict:
    """What differs between the splits of a data set."""
    if split != 'train':
        return {} if scope == 'mmpretrain' else dict(test_mode=True)
    # Images without objects teach what is none, and small ones are images too.
    return dict(filter_cfg=dict(filter_empty_gt=False)) if scope == 'mmdet' else {}


def _metric(scope: str, data: FolderData, part: Split, masks: bool) -> dict:
    if scope == 'mmdet':
        kinds = ['bbox', 'segm'] if masks else ['bbox']
        return dict(type='mmlocalattn.IntervalCocoMetric', ann_file=part.annotations, metric=kinds)
    if scope == 'mmseg':
        return dict(type='mmlocalattn.IntervalIoUMetric', iou_metrics=['mIoU'])
    topk = (1, _TOP) if len(data.classes) > _TOP else (1,)
    return dict(type='mmlocalattn.IntervalAccuracy', topk=topk)


def _pipelines(cfg: Config) -> Iterator[list]:
    """Every list of transforms of a config."""
    loaders = [cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test')]
    for part in dicts([*loaders, cfg.get('custom_hooks'), dict(pipeline=cfg.get('tta_pipeline'))]):
        for key in ('pipeline', 'switch_pipeline'):
            if isinstance(part.get(key), (list, tuple)):
                yield part[key]


def _fit_step(step: dict, scope: str, data: FolderData, masks: bool) -> None:
    """Let a transform load what there is and the model needs."""
    kind = str(step.get('type')).rpartition('.')[2]
    if kind.startswith('Load') and step.get('backend_args'):
        step['backend_args'] = None
    if kind == 'LoadImageFromFile' and data.ignore_orientation:
        step['color_type'] = 'color_ignore_orientation'
    if kind == 'LoadPanopticAnnotations':
        step.clear()
        step.update(type='LoadAnnotations', with_bbox=True, with_mask=masks)
    elif kind == 'LoadAnnotations' and scope == 'mmdet':
        step['with_bbox'] = True
        if 'with_mask' in step:
            step['with_mask'] = masks
        if 'with_seg' in step:
            step['with_seg'] = False
    elif kind == 'LoadAnnotations' and scope == 'mmseg':
        step['reduce_zero_label'] = data.reduce_zero_label
    elif kind == 'FilterAnnotations' and step.get('by_mask'):
        step['by_mask'] = masks
