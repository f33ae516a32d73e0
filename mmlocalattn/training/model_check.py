"""What the model of a config needs of its data: classes, and batches for its batch norms."""

import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from mmlocalattn.adapt.nodes import dicts
from mmlocalattn.data.findings import Finding
from mmlocalattn.training.data_sets import type_name

# Parts whose number of classes is not that of the data: a two-stage detector's RPN tells objects
# from background, FusedSemanticHead of HTC learns other maps, a backbone's own head is not used.
OTHER_CLASSES = ('rpn_head', 'backbone', 'semantic_head', 'data_preprocessor')
HEADS = ('bbox_head', 'mask_head', 'head', 'decode_head', 'auxiliary_head', 'mask_iou_head')
# Parts that norm a map of one pixel, where a batch of one image has one value for each channel, and
# the norm that they have by default.
POOLING = {
    'APCHead': '',
    'ASPPHead': '',
    'BiSeNetV1': 'BN',
    'BiSeNetV2': 'BN',
    'DepthwiseSeparableASPPHead': '',
    'FastSCNN': 'BN',
    'ICNet': 'SyncBN',
    'LinearNeck': 'BN1d',
    'PSPHead': '',
    'STDCContextPathNet': 'BN',
    'UPerHead': '',
}
PROCESSES = {
    'pytorch': 'WORLD_SIZE',
    'slurm': 'SLURM_NTASKS',
    'mpi': 'OMPI_COMM_WORLD_SIZE',
}


def class_settings(cfg: Config) -> list[tuple[str, int]]:
    """Every setting of a model that is to be the number of classes: its name and its value.

    A head whose setting is not written has the default of its class.
    """
    if any('language_model' in part for part in dicts(cfg.model)):
        return []  # told classes by their names, and has room for many
    found = list(_class_settings('model', cfg.model, cfg.get('default_scope')))
    preprocessor = cfg.get('data_preprocessor') or {}
    if preprocessor.get('num_classes') and preprocessor.get('to_onehot'):
        found.append(('data_preprocessor.num_classes', preprocessor['num_classes']))
    return found


def _class_settings(name: str, part: Any, scope: str | None) -> Iterator[tuple[str, int]]:
    if isinstance(part, (list, tuple)):
        for i, inner in enumerate(part):
            yield from _class_settings(f'{name}.{i}', inner, scope)
    if not isinstance(part, dict):
        return
    number = part.get('num_classes')
    if number is None and _key(name) in HEADS and 'type' in part:
        number = _default_num_classes(part['type'], scope)
    if type_name(part) == 'STDCHead':  # tells edges from the rest
        number = None
    agnostic = part.get('class_agnostic') and 'Mask' in type_name(part)
    if isinstance(number, int) and not agnostic:
        yield f'{name}.num_classes', number
    if isinstance(part.get('num_things_classes'), int):
        yield f'{name}.num_things_classes', part['num_things_classes']
    for key, inner in part.items():
        if key not in OTHER_CLASSES:
            yield from _class_settings(f'{name}.{key}', inner, scope)


def _key(name: str) -> str:
    """``'bbox_head'`` of ``'model.roi_head.bbox_head.0'``."""
    return re.sub(r'(\.\d+)+$', '', name).rpartition('.')[2]


def _default_num_classes(kind: Any, scope: str | None) -> int | None:
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(kind)
    for cls in getattr(kind, '__mro__', ()):
        parameter = inspect.signature(cls.__init__).parameters.get('num_classes')
        if parameter is not None:
            return parameter.default if isinstance(parameter.default, int) else None
    return None


def check_class_weights(cfg: Config) -> Iterator[Finding]:
    """Check that a loss has as many weights as its head has classes."""
    for part in dicts(cfg.model):
        number = part.get('num_classes') or (
            part.get('num_things_classes', 0) + part.get('num_stuff_classes', 0)
        )
        for key in ('loss_decode', 'loss_cls'):
            for loss in dicts(part.get(key)):
                weights = loss.get('class_weight')
                # The loss of queries may have one more, for no object.
                queries = key == 'loss_cls' or loss.get('loss_name', '').startswith('loss_cls')
                allowed = (number, number + 1) if queries else (number,)
                if number and isinstance(weights, (list, tuple)) and len(weights) not in allowed:
                    yield Finding(
                        'error',
                        'num_classes',
                        f'{type_name(part)}.{key}.class_weight',
                        '',
                        f'{len(weights)} weights for {number} classes',
                        'Give one for each class',
                    )


def check_single_class(cfg: Config) -> Iterator[Finding]:
    """Find segmentation heads that choose among one class, whose loss is always 0."""
    for head in dicts(cfg.model):
        for key in ('decode_head', 'auxiliary_head'):
            for part in _list(head.get(key)):
                losses = _list(part.get('loss_decode')) or [{'type': 'CrossEntropyLoss'}]
                if part.get('num_classes') == 1 and any(
                    type_name(loss) == 'CrossEntropyLoss' and not loss.get('use_sigmoid')
                    for loss in losses
                ):
                    yield Finding(
                        'error',
                        'num_classes',
                        type_name(part),
                        '',
                        f'{key}.num_classes is 1, and a softmax over one class is always right: '
                        'the loss would be 0',
                        "Name the rest, classes=('background', ...), and set num_classes=2",
                    )


def check_masks(cfg: Config, splits: Sequence[str]) -> Iterator[Finding]:
    """Compare the masks that a detector learns and predicts with those that it is given and asked.

    Args:
        cfg: Of mmdet.
        splits: Of ``'train'``, ``'val'`` and ``'test'``.
    """
    words = ' '.join(
        f'{key} {value if key == "type" else ""}'
        for part in dicts(cfg.model)
        for key, value in part.items()
        if value is not None
    )
    for split in () if _may_have_masks(words) else splits:
        for metric in dicts(cfg.get(f'{split}_evaluator')) if split != 'train' else ():
            if 'segm' in _list(metric.get('metric')):
                yield Finding(
                    'error',
                    'masks',
                    f'{split}_evaluator.metric',
                    '',
                    f"'segm' compares masks, which {type_name(cfg.model)} does not predict",
                    f"Set {split}_evaluator.metric='bbox'",
                )
    pipeline = list(dicts((cfg.get('train_dataloader') or {}).get('dataset')))
    loads = [step for step in pipeline if type_name(step) == 'LoadAnnotations']
    learns = any(isinstance(part.get('mask_head'), dict) for part in dicts(cfg.model))
    if (
        'train' in splits
        and learns
        and loads
        and 'BoxInst' not in words  # learns masks from boxes
        and not any(step.get('with_mask') for step in loads)
    ):
        yield Finding(
            'error',
            'masks',
            'train_dataloader.dataset.pipeline',
            '',
            'LoadAnnotations loads no masks, and the model has a mask_head',
            "Write dict(type='LoadAnnotations', with_bbox=True, with_mask=True)",
        )


def _may_have_masks(words: str) -> bool:
    """Whether a model may predict masks, by all that is named in it."""
    return bool(re.search('mask|ins|solo|yolact|segm|panoptic', words, re.IGNORECASE))


def _list(value: Any) -> list:
    """One or several things, as configs take them, or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def num_processes(cfg: Config) -> int:
    """How many processes train together."""
    return int(os.environ.get(PROCESSES.get(cfg.get('launcher', 'none'), ''), 1))


def check_batch(cfg: Config, num_images: int | None) -> Iterator[Finding]:
    """Check the batch size against what the model and its learning rate are made for.

    Args:
        cfg: With its launcher.
        num_images: In an epoch, or None if that is not known.
    """
    loader = cfg.get('train_dataloader') or {}
    batch = loader.get('batch_size')
    if not isinstance(batch, int):
        return
    processes = num_processes(cfg)
    for part in dicts(cfg.model):
        norm = _batch_norm_of_one_pixel(part)
        values = processes if 'Sync' in norm else 1
        if norm and batch * values == 1:
            yield _too_small(part, norm, 'train_dataloader.batch_size is 1')
        elif norm and num_images and values == 1 and not loader.get('drop_last'):
            by_epoch = (cfg.get('train_cfg') or {}).get('max_epochs')
            if by_epoch and -(-num_images // processes) % batch == 1:
                problem = f'{num_images} images in batches of {batch} leave a last one of 1'
                yield _too_small(part, norm, problem)
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    scaled = (cfg.get('auto_scale_lr') or {}).get('enable')
    if base and not scaled and not base / 4 < batch * processes < base * 4:
        yield Finding(
            'note',
            'learning rate',
            'optim_wrapper',
            '',
            f'its learning rate is made for batches of {base} images, and these have '
            f'{batch * processes}',
            '--auto-scale-lr scales it',
        )


def _batch_norm_of_one_pixel(part: Mapping) -> str:
    """The kind of a trained batch norm that sees one value for each image, or nothing."""
    name = type_name(part)
    if name not in POOLING:
        return ''
    norm = type_name(part.get('norm_cfg', {'type': POOLING[name]}) or {})
    trained = 'BN' in norm or 'BatchNorm' in norm
    return norm if trained and 1 in part.get('pool_scales', (1,)) else ''


def _too_small(part: Mapping, norm: str, problem: str) -> Finding:
    return Finding(
        'error',
        'batch norm',
        type_name(part),
        '',
        f'its {norm} sees one value for each channel and image, and {problem}, where a batch norm '
        'needs two',
        'Set train_dataloader.batch_size=2 or more, and train_dataloader.drop_last=True',
    )
