"""What can be known to be wrong with a run before anything of it is built."""

import os

from mmengine.config import Config
from mmengine.logging import print_log

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
    if task == 'train':
        check_weight_files(cfg)


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
