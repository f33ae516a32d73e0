"""What can be known to be wrong with a run before anything of it is built."""

import inspect
import os
from collections.abc import Mapping

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import OPTIMIZERS, DefaultScope
from mmengine.runner import Runner

from mmlocalattn.adapt.nodes import dicts
from mmlocalattn.files import check_folder
from mmlocalattn.training.best_metric import check_best_metric
from mmlocalattn.training.weight_files import check_weight_files

_LAUNCHERS = {
    'pytorch': ('RANK', 'torchrun, as `bash tools/dist_train.sh CONFIG GPUS`'),
    'slurm': ('SLURM_PROCID', 'srun, as `bash tools/slurm_train.sh PARTITION JOB CONFIG`'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'mpirun'),
}
"""The variable that a launcher sets in each process, and what starts the processes."""

_IOU_METRICS = ('mIoU', 'mDice', 'mFscore')
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_DICTS = (
    *('model', 'train_cfg', 'optim_wrapper', 'optim_wrapper.optimizer', 'default_hooks'),
    *('default_hooks.checkpoint', 'env_cfg', 'randomness', 'auto_scale_lr', 'log_processor'),
    *_LOADERS,
    *(f'{loader}.dataset' for loader in _LOADERS),
)
"""Entries that are a dict, if they are set."""

_LISTS = ('param_scheduler', 'custom_hooks')
"""Entries that are a list of dicts, if they are set."""

_NUMBERS = {
    **dict.fromkeys(('train_cfg.max_epochs', 'train_cfg.max_iters', 'train_cfg.val_interval'), 1),
    'train_cfg.val_begin': 0,
    **{f'{loader}.batch_size': 1 for loader in _LOADERS},
    **{f'{loader}.num_workers': 0 for loader in _LOADERS},
    'auto_scale_lr.base_batch_size': 1,
    'default_hooks.checkpoint.interval': -1,
    'log_processor.window_size': 1,
    'randomness.seed': 0,
}
"""Entries that are a whole number, if they are set, and their smallest value."""


def check_run(cfg: Config, task: str) -> None:
    """Check the launcher, the work dir, the parts of a config and the weights it starts from.

    Args:
        cfg: With its ``work_dir``. Parts that have a default get it: see :func:`complete_parts`.
        task: ``'train'`` or ``'test'``.

    Raises:
        OSError: If a file does not exist or the work dir cannot be written.
        ValueError: If something else is wrong; says what, and what to do.
    """
    _check_kinds(cfg)
    if not cfg.get('model'):
        raise ValueError(f'{cfg.filename} has no model: it is a base of configs, and no config')
    launcher = cfg.get('launcher', 'none')
    if launcher in _LAUNCHERS:
        variable, starter = _LAUNCHERS[launcher]
        if variable not in os.environ:
            raise ValueError(
                f'--launcher {launcher} is for processes that are started by {starter}: {variable} '
                'is not set. Leave it out for one process.'
            )
    check_folder(cfg.work_dir)
    complete_parts(cfg, task)
    _check_iou_metrics(cfg)
    _check_samplers(cfg)
    if task == 'train':
        _check_length(cfg)
        _check_optimizer(cfg)
        _check_checkpoint_hook(cfg)
        check_best_metric(cfg)
        check_weight_files(cfg)


def _entry(cfg: Config, path: str) -> object:
    """What stands at ``'a.b'`` of a config, None if nothing does."""
    value: object = cfg
    for key in path.split('.'):
        value = value.get(key) if isinstance(value, (Config, Mapping)) else None
    return value


def _check_kinds(cfg: Config) -> None:
    """Raise a ValueError for an entry that is no dict, list or number where MMEngine wants one."""
    for path in _DICTS:
        value = _entry(cfg, path)
        if not (value is None or isinstance(value, Mapping)):
            raise ValueError(f'{path} of {cfg.filename} must be a dict, got {value!r}')
    for path in _LISTS:
        value = _entry(cfg, path)
        if path == 'param_scheduler' and isinstance(value, Mapping):
            continue  # one, or those of several optimizers
        if value is not None and not (
            isinstance(value, (list, tuple)) and all(isinstance(part, Mapping) for part in value)
        ):
            raise ValueError(f'{path} of {cfg.filename} must be a list of dicts, got {value!r}')
    for path, smallest in _NUMBERS.items():
        value = _entry(cfg, path)
        if value is not None and not (isinstance(value, int) and value >= smallest):
            kind = '' if isinstance(value, int) else 'a whole number, '
            raise ValueError(
                f'{path} of {cfg.filename} must be {kind}{smallest} or more, got {value!r}'
            )
    for loader in _LOADERS:
        if cfg.get(loader) and cfg[loader].get('dataset') is None:
            raise ValueError(f'{loader} of {cfg.filename} has no dataset')


def _check_length(cfg: Config) -> None:
    """Raise a ValueError if one of MMEngine's loops is not told how long to train."""
    loop = cfg.train_cfg
    by_mmengine = loop.get('type') in (None, 'EpochBasedTrainLoop', 'IterBasedTrainLoop')
    if by_mmengine and (loop.get('max_epochs') is None) == (loop.get('max_iters') is None):
        raise ValueError(f'train_cfg of {cfg.filename} must have either max_epochs or max_iters')


def _check_samplers(cfg: Config) -> None:
    """Raise a ValueError for a pass over the data that would never end."""
    for name in _LOADERS:
        sampler = str(_entry(cfg, f'{name}.sampler.type')).rpartition('.')[2]
        by_epoch = name != 'train_dataloader' or _entry(cfg, 'train_cfg.max_epochs')
        if sampler == 'InfiniteSampler' and by_epoch:
            raise ValueError(
                f'{name}.sampler of {cfg.filename} is an InfiniteSampler, with which no epoch '
                "ends: set its type='DefaultSampler'"
            )


def _check_checkpoint_hook(cfg: Config) -> None:
    """Raise a ValueError for arguments that would be refused when the first checkpoint is due."""
    hook = _entry(cfg, 'default_hooks.checkpoint')
    if not isinstance(hook, Mapping) or hook.get('type') != 'CheckpointHook':
        return
    known = {'type', 'priority', '_scope_'}
    for function in (CheckpointHook.__init__, Runner.save_checkpoint):
        known.update(inspect.signature(function).parameters)
    unknown = sorted(set(hook) - known)
    if unknown:
        raise ValueError(
            f'default_hooks.checkpoint of {cfg.filename}: CheckpointHook has no {unknown[0]!r}'
        )


def _check_iou_metrics(cfg: Config) -> None:
    """Raise a ValueError for metrics of which MMSegmentation would say so after a validation."""
    for split in ('val', 'test'):
        for metric in dicts(cfg.get(f'{split}_evaluator')):
            names = metric.get('iou_metrics') or ()
            for name in [names] if isinstance(names, str) else names:
                if str(metric.get('type')).endswith('IoUMetric') and name not in _IOU_METRICS:
                    raise ValueError(
                        f'{split}_evaluator.iou_metrics of {cfg.filename}: there is no {name!r}, '
                        f'only {", ".join(_IOU_METRICS)}'
                    )


def _check_optimizer(cfg: Config) -> None:
    """Raise a ValueError for an optimizer that is not registered; MMEngine would not name it."""
    optimizer = cfg.optim_wrapper.get('optimizer')
    if optimizer is None and 'constructor' not in cfg.optim_wrapper:
        raise ValueError(f'optim_wrapper of {cfg.filename} has no optimizer')
    name = (optimizer or {}).get('type')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        if isinstance(name, str) and OPTIMIZERS.get(name) is None:
            raise ValueError(
                f'optim_wrapper.optimizer of {cfg.filename}: there is no optimizer {name!r}; '
                f'registered are {", ".join(sorted(OPTIMIZERS.module_dict))}'
            )


def complete_parts(cfg: Config, task: str) -> None:
    """Give the parts of a config that MMEngine asks for, and leave out what lacks its counterparts.

    Without a data loader there is no validation or test, whatever else the config says about it. A
    loop that is not named is MMEngine's.

    Args:
        cfg: Changed in place.
        task: ``'train'`` or ``'test'``.

    Raises:
        ValueError: If the task lacks a part that has no default.
    """
    for key in ('env_cfg', 'randomness', 'log_processor', 'default_hooks', 'custom_hooks'):
        if cfg.get(key, '') is None:
            cfg.pop(key)
    for split, used_by in (('val', 'train'), ('test', 'test')):
        loader, loop, evaluator = (f'{split}_{part}' for part in ('dataloader', 'cfg', 'evaluator'))
        if cfg.get(loader) is not None and cfg.get(evaluator) is None and task == used_by:
            raise ValueError(f'{cfg.filename} has {loader} and no {evaluator}: set both or neither')
        if cfg.get(loader) is None or cfg.get(evaluator) is None:
            if task == used_by == 'train' and cfg.get(evaluator) is not None:
                print_log(f'{cfg.filename} has no {loader}: no validation.', logger=None)
            cfg.update({loader: None, loop: None, evaluator: None})
        elif cfg.get(loop) is None:
            cfg[loop] = {}
    if task == 'test' and cfg.get('test_dataloader') is None:
        raise ValueError(
            f'{cfg.filename} has no test_dataloader and test_evaluator, and no val_dataloader and '
            'val_evaluator that could serve'
        )
    needed = ('train_dataloader', 'train_cfg', 'optim_wrapper')
    missing = [key for key in needed if cfg.get(key) is None]
    if missing and task == 'train':
        raise ValueError(
            f'{cfg.filename} has no {", ".join(missing)}: a training needs all of them'
        )
    if missing:
        cfg.update(dict.fromkeys((*needed, 'param_scheduler')))
