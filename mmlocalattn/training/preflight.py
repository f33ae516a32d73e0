"""What can be known to be wrong with a run before anything of it is built."""

import os

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import OPTIMIZERS, DefaultScope

from mmlocalattn.files import check_folder
from mmlocalattn.training.weights import check_weight_files

_LAUNCHERS = {
    'pytorch': ('RANK', 'torchrun, as `bash tools/dist_train.sh CONFIG GPUS`'),
    'slurm': ('SLURM_PROCID', 'srun, as `bash tools/slurm_train.sh PARTITION JOB CONFIG`'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'mpirun'),
}
"""The variable that a launcher sets in each process, and what starts the processes."""


def check_run(cfg: Config, task: str) -> None:
    """Check the launcher, the work dir, the parts of a config and the weights it starts from.

    Args:
        cfg: With its ``work_dir``. Parts that have a default get it: see :func:`complete_parts`.
        task: ``'train'`` or ``'test'``.

    Raises:
        OSError: If a file does not exist or the work dir cannot be written.
        ValueError: If something else is wrong; says what, and what to do.
    """
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
    for split in ('train', 'val', 'test'):
        _check_positive(cfg, f'{split}_dataloader', 'batch_size')
    if task == 'train':
        for key in ('max_epochs', 'max_iters', 'val_interval'):
            _check_positive(cfg, 'train_cfg', key)
        _check_optimizer(cfg)
        check_weight_files(cfg)


def _check_positive(cfg: Config, part: str, key: str) -> None:
    """Raise a ValueError if a number of a config is given and is no whole number above 0."""
    value = (cfg.get(part) or {}).get(key)
    if value is not None and not (isinstance(value, int) and value > 0):
        raise ValueError(f'{part}.{key} of {cfg.filename} must be 1 or more, got {value!r}')


def _check_optimizer(cfg: Config) -> None:
    """Raise a ValueError for an optimizer that is not registered; MMEngine would not name it."""
    name = (cfg.optim_wrapper.get('optimizer') or {}).get('type')
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
