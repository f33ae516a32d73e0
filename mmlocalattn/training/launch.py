"""A config on the machine that it meets, and the run that it describes."""

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

from mmlocalattn.adapt.cpu import tune_for_cpu
from mmlocalattn.adapt.nodes import dicts
from mmlocalattn.training.best_metric import BestMetricHook
from mmlocalattn.training.checkpoint import allow_mmengine_checkpoints
from mmlocalattn.training.errors import build_errors
from mmlocalattn.training.first_start import check_first_start
from mmlocalattn.training.fit_check import FirstItemHook, check_levels
from mmlocalattn.training.invalid_loss import InvalidLossHook
from mmlocalattn.training.low_precision import TrainDtypeHook, autocast_parts, has_bfloat16_units
from mmlocalattn.training.resume import ExactResumeHook
from mmlocalattn.training.schedule import ScheduleHook
from mmlocalattn.training.weights import WeightsHook
from mmlocalattn.training.whole_checkpoints import write_whole_checkpoints

AMP_DEVICES = ('cuda', 'npu', 'mlu', 'musa')  # of MMEngine's AmpOptimWrapper


def build_runner(cfg: Config, allow_partial: bool = False) -> Runner:
    """The runner of a config, on the device that is there: ``train()``, ``val()`` or ``test()`` it.

    It repeats the run it resumes, follows the schedule of the config, refuses checkpoints of other
    models and stops at an invalid loss: see the hooks.

    Args:
        cfg: With its ``work_dir``. Changed in place by :func:`adapt_to_device` and
            :func:`adapt_loaders`. ``model_dtype`` is for :func:`autocast_parts`, ``train_dtype``
            too, in training alone.
        allow_partial: Test with a checkpoint of which only a part fits.

    Raises:
        RunError: If the config cannot be built; says which part of it, and why.
    """
    allow_mmengine_checkpoints()
    adapt_to_device(cfg)
    adapt_loaders(cfg)
    with build_errors(cfg.filename):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if isinstance(runner, FlexibleRunner):
        hooks = [FlexibleModelHook(cfg)]
    else:
        _prepare_model(runner.model, cfg)
        if get_device() == 'cpu':
            tune_for_cpu(runner.model)
        check_levels(runner.model, cfg)
        hooks = []
    hooks += [
        *(ExactResumeHook(), ScheduleHook(), WeightsHook(allow_partial), InvalidLossHook()),
        *(FirstItemHook(), BestMetricHook()),
        *(TrainDtypeHook(dtype) for dtype in [cfg.get('train_dtype')] if dtype),
    ]
    for hook in hooks:
        runner.register_hook(hook)
    write_whole_checkpoints(runner)
    return runner


class FlexibleModelHook(Hook):
    """Prepares the model of a ``FlexibleRunner``, which builds it no earlier than it starts.

    Its levels are left to the first batch: a strategy may have divided the model among processes.

    Args:
        cfg: Of the runner.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg

    def before_run(self, runner: FlexibleRunner) -> None:
        """Prepare it."""
        _prepare_model(runner.model, self.cfg)


def _prepare_model(model: nn.Module, cfg: Config) -> None:
    with build_errors(cfg.filename):
        autocast_parts(model, cfg.get('model_dtype', 'float32'))
    check_first_start(model)


def enable_amp(cfg: Config) -> None:
    """Train in mixed precision.

    On a GPU it is MMEngine's, with a loss scale that follows the gradients, on a CPU bfloat16, see
    :class:`TrainDtypeHook`.

    Args:
        cfg: Changed in place.
    """
    if get_device() == 'cpu':
        cfg.train_dtype = 'bfloat16'
        _say_if_slower('bfloat16')
    else:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')


def set_dtype(cfg: Config, dtype: str) -> None:
    """Run the parts of the model in a dtype, see :func:`autocast_parts`, and say what to expect.

    Args:
        cfg: Changed in place.
        dtype: ``'float32'`` or ``'bfloat16'``.
    """
    cfg.model_dtype = dtype
    _say_if_slower(dtype)


def _say_if_slower(dtype: str) -> None:
    if dtype == 'bfloat16' and get_device() == 'cpu' and not has_bfloat16_units():
        print_log(
            'This CPU has no units for bfloat16: it will be slower than float32.', logger=None
        )


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate with the batch size.

    Args:
        cfg: Changed in place.

    Raises:
        ValueError: If the config does not say for which batch size its learning rate is.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        where = cfg.filename or 'the config'
        raise ValueError(f'--auto-scale-lr needs auto_scale_lr.base_batch_size in {where}')
    cfg.auto_scale_lr.enable = True


def adapt_loaders(cfg: Config) -> None:
    """Leave out what only data loaders with workers take, where ``num_workers=0``, and say so.

    Args:
        cfg: Changed in place.
    """
    changed = []
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader is None or loader.get('num_workers', 0) > 0:
            continue
        for key in ('persistent_workers', 'prefetch_factor'):
            if loader.pop(key, None):
                changed.append(f'{name}.{key}')
    if changed:
        print_log(f'num_workers=0: without {", ".join(changed)}.', logger=None)


def adapt_to_device(cfg: Config) -> None:
    """Let a config written for GPUs run where there is none, and say so.

    MMEngine's AMP needs an accelerator, SyncBN needs a GPU, and MMEngine's launcher assumes CUDA.
    Without one, training is in float32, and processes talk through gloo; SyncBN is BN in a single
    process, and :class:`CPUSyncBatchNorm` in several. (With one GPU, MMEngine itself replaces it.)

    Args:
        cfg: Changed in place.
    """
    if get_device() in AMP_DEVICES:
        return
    wrapper = cfg.get('optim_wrapper')
    if wrapper is not None and wrapper.get('type', '').endswith('AmpOptimWrapper'):
        wrapper.type = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
        if 'train_dtype' not in cfg:
            print_log(
                'No GPU found: training in float32 instead of mixed precision; '
                '--amp trains in bfloat16.',
                logger=None,
            )
    if cfg.get('launcher', 'none') == 'pytorch':
        torch.distributed.init_process_group('gloo')
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
    norm = 'mmlocalattn.CPUSyncBN' if get_world_size() > 1 else 'BN'
    for part in dicts(cfg.model):
        if part.get('type') == 'SyncBN':
            part['type'] = norm
