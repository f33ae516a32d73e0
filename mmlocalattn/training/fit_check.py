"""Whether the parts of a model fit each other, and its data: what stops the first batch."""

import contextlib
import copy
import random
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from mmlocalattn.adapt.nodes import channels_of
from mmlocalattn.registry import HOOKS
from mmlocalattn.training.errors import RunError, reason_of
from mmlocalattn.training.weights import bare_model, is_divided

SIDE = 256  # of the image whose maps are looked at, in pixels
TOLERANCE = 1.4  # between a stride and the share of an image, whose convolutions may not pad
PACKERS = {'mmdet': 'PackDetInputs', 'mmseg': 'PackSegInputs', 'mmpretrain': 'PackInputs'}


def check_levels(model: nn.Module, cfg: Config) -> None:
    """Compare the levels and strides that heads are made for with the maps that they get.

    Args:
        model: That a runner has built.
        cfg: Its config.

    Raises:
        RunError: If they differ; names the setting, and both.
    """
    inner = bare_model(model)
    maps = _maps(inner, channels_of(cfg))
    if maps is None:
        return
    strides = [SIDE / map_.shape[-1] for map_ in maps]
    for setting, said, all_levels in _said_strides(inner):
        number = len(strides) if all_levels else min(len(said), len(strides))
        fits = len(said) == number and all(
            map_.shape[-1] < 4 or 1 / TOLERANCE < stride / expected < TOLERANCE
            for map_, stride, expected in zip(maps, strides, said)
        )
        if not fits:
            raise RunError(
                f'{cfg.filename}: model.{setting} is {_numbers(said)}, and the maps that it is for '
                f'have strides of {_numbers(strides)}: set it to those, or num_outs, start_level '
                'and out_indices of what comes before'
            )


def _maps(model: Any, channels: int) -> Sequence[Tensor] | None:
    """The maps of a square image, None if the model makes none of it."""
    parameter = next(model.parameters(), None)
    if not hasattr(model, 'extract_feat') or parameter is None:
        return None
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            maps = model.extract_feat(parameter.new_zeros(1, channels, SIDE, SIDE))
    except Exception:  # of whatever it asks for: the first batch will tell
        return None
    finally:
        model.train(was_training)
    if not isinstance(maps, (list, tuple)) or not all(
        isinstance(map_, Tensor) and map_.ndim == 4 for map_ in maps
    ):
        return None
    return maps


def _said_strides(model: Any) -> Iterator[tuple[str, list[float], bool]]:
    """Settings of strides, their values, and whether they are for all maps."""
    for name in ('rpn_head', 'bbox_head'):
        generator = getattr(getattr(model, name, None), 'prior_generator', None)
        if generator is not None:
            key = 'anchor_generator' if hasattr(generator, 'base_anchors') else 'prior_generator'
            yield f'{name}.{key}.strides', [pair[0] for pair in generator.strides], True
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        found: Any = getattr(getattr(model, 'roi_head', None), name, None)
        extractors: list[Any] = list(found) if isinstance(found, nn.ModuleList) else [found]
        for extractor in extractors:
            if hasattr(extractor, 'featmap_strides'):
                yield f'roi_head.{name}.featmap_strides', list(extractor.featmap_strides), False


def _numbers(values: Sequence[float]) -> str:
    return f'[{", ".join(f"{value:.3g}" for value in values)}]'


def misfit(error: BaseException, model: nn.Module, cfg: Config) -> str:
    """Which part of a model an error came from, with what it takes and what it gets.

    Args:
        error: Of a forward.
        model: As a runner has it.
        cfg: Its config, whose names are used.
    """
    inner = bare_model(model)
    names = {id(module): name for name, module in inner.named_modules()}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    passed = [
        (names[id(frame.f_locals['self'])], frame)
        for frame in frames
        if names.get(id(frame.f_locals.get('self')))
    ]
    if not passed:
        return f'the model does not take its first batch: {reason_of(error)}'
    name, frame = passed[-1]
    part = _part(name, cfg.model)
    kind = type(inner.get_submodule(part)).__name__
    of_part = [frame for other, frame in passed if other == part]
    where = f'model.{part} ({kind})'
    module, given = frame.f_locals['self'], frame.f_locals.get('input')
    expected = getattr(module, 'in_channels', None) or getattr(module, 'in_features', None)
    if isinstance(given, Tensor) and isinstance(expected, int) and given.ndim > 1:
        got = given.shape[-1 if hasattr(module, 'in_features') else 1]
        if got != expected:
            of_regions = hasattr(inner.get_submodule(part), 'roi_feat_size')
            return (
                f'{where}: its {name.removeprefix(part).lstrip(".") or kind} takes {expected} '
                f'channels and gets {got}, of {tuple(given.shape)}: set its in_channels'
                f'{" and roi_feat_size" if of_regions else ""} to what the part before it gives'
            )
    shapes = next(filter(None, map(_shapes, of_part)), '')
    gets = f', which gets {shapes},' if shapes else ''
    return f'{where}{gets} does not take its first batch: {reason_of(error)}'


def _part(name: str, node: Any) -> str:
    """Of ``'neck.convs.0'``, what the config has an entry for: ``'neck'``."""
    found: list[str] = []
    for key in name.split('.'):
        if isinstance(node, Mapping) and isinstance(node.get(key), (Mapping, list)):
            node = node[key]
        elif isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        else:
            break
        found.append(key)
    return '.'.join(found) or name.partition('.')[0]


def _shapes(frame: Any) -> str:
    """The shapes of the tensors that a call got first."""
    code = frame.f_code
    for key in code.co_varnames[1 : code.co_argcount]:
        value = frame.f_locals.get(key)
        tensors = [value] if isinstance(value, Tensor) else value
        if (
            isinstance(tensors, (list, tuple))
            and tensors
            and all(isinstance(tensor, Tensor) for tensor in tensors)
        ):
            return ', '.join(str(tuple(tensor.shape)) for tensor in tensors)
    return ''


@HOOKS.register_module()
class FirstItemHook(Hook):
    """Takes an image of each loader through its pipeline before a training, and validates with one.

    What is wrong with the pipeline or the settings for tests would stop the run after an epoch
    else. Random numbers are put back, so that the run is the same with it.
    """

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Look at the first images.

        Raises:
            RunError: If a pipeline does not make what the model takes, or the model does not
                predict.
        """
        with _random_numbers_kept():
            _first_item(runner, 'train', runner.train_dataloader)
            if runner.val_loop is not None:
                item = _first_item(runner, 'val', runner.val_dataloader)
                if item is not None and not is_divided(runner.model):
                    _validate(runner, item)


@contextlib.contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Leave the generators of Python, NumPy and PyTorch as they are."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _first_item(runner: Runner, split: str, loader: Any) -> dict | None:
    """The first item of a loader's data set, None if it is not one of a toolbox's images."""
    scope, dataset = runner.cfg.get('default_scope'), loader.dataset
    inner = dataset
    while not isinstance(inner, BaseDataset):
        parts = getattr(inner, 'datasets', [getattr(inner, 'dataset', None)])
        if not parts or parts[0] is None:
            return None
        inner = parts[0]
    if scope not in PACKERS or any('Video' in cls.__name__ for cls in type(inner).__mro__):
        return None
    where = f'{runner.cfg.filename}: {split}_dataloader.dataset.pipeline'
    try:
        item = _without_memory(dataset)[0]
    except Exception as error:  # of whatever a pipeline uses
        raise RunError(f'{where}: {_transform(error)}{reason_of(error)}') from error
    if not isinstance(item, dict) or 'inputs' not in item:
        raise RunError(
            f"{where} makes no 'inputs' for the model: it must end with dict(type="
            f"'{PACKERS[scope]}')"
        )
    missing = _missing_labels(item.get('data_samples')) if split == 'train' else ''
    if missing:
        raise RunError(
            f"{where} makes no {missing} to learn: it must have dict(type='LoadAnnotations'"
            + (', with_bbox=True)' if scope == 'mmdet' else ')')
        )
    return item


def _without_memory(dataset: Any) -> Any:
    """A copy of a data set whose transforms, as mosaics, may keep what they see; of the same data.

    What cannot be copied is returned itself.
    """
    shared: dict[int, Any] = {}
    parts = [dataset]
    for part in parts:
        parts += [*getattr(part, 'datasets', ()), *filter(None, [getattr(part, 'dataset', None)])]
        data = [value for value in vars(part).values() if isinstance(value, np.ndarray)]
        shared |= {id(value): value for value in (*data, getattr(part, 'data_list', None))}
    try:
        return copy.deepcopy(dataset, shared)
    except Exception:  # of whatever a data set holds, as connections
        return dataset


def _transform(error: BaseException) -> str:
    """The transform of a pipeline that an error came from, as ``'Resize: '``."""
    selves = [frame.f_locals.get('self') for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [type(step).__name__ for step in selves if hasattr(step, 'transform')]
    return f'{names[0]}: ' if names else ''


def _missing_labels(sample: Any) -> str:
    """What the data sample of a supervised detector or segmentor has not got."""
    kind = type(sample).__name__
    if kind == 'DetDataSample' and 'labels' not in getattr(sample, 'gt_instances', ()):
        return 'boxes'
    return 'index map' if kind == 'SegDataSample' and 'gt_sem_seg' not in sample else ''


def _validate(runner: Runner, item: dict) -> None:
    """Let the model predict for an item, and the metrics take that in."""
    model: Any = bare_model(runner.model)
    evaluator = runner.val_loop.evaluator
    batch = runner.val_dataloader.collate_fn([item])
    model.eval()
    try:
        with torch.no_grad():
            samples = model.val_step(batch)
        try:
            evaluator.process(data_samples=samples, data_batch=batch)
        finally:
            for metric in evaluator.metrics:
                metric.results.clear()
    except Exception as error:
        raise RunError(
            f'{runner.cfg.filename}: a validation would stop: {misfit(error, model, runner.cfg)}'
        ) from error
    finally:
        model.train()
