"""The schedule of a resumed run: the config's, also where it is not the one the run began with."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmlocalattn.registry import HOOKS
from mmlocalattn.training.errors import RunError

# What a scheduler keeps besides its settings.
_PROGRESS = ('last_step', '_global_step', '_last_value', 'verbose')
_PLATEAU = ('best', 'num_bad_epochs', 'cooldown_counter', 'rule_worse')


@HOOKS.register_module()
class ScheduleHook(Hook):
    """Lets a resumed run follow the schedule of its config.

    MMEngine puts the schedulers of the checkpoint over those of the config: with a larger
    ``max_epochs``, other milestones or another learning rate the run goes on with the old ones, or
    with the last value where these have ended. Where the two schedules are the same, MMEngine
    restores them. Where they are not, the config's is moved to where the run is: learning rates and
    momenta become what a new run with this config has there.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Change what MMEngine restores next.

        Raises:
            RunError: If the schedule is another one and cannot be computed.
        """
        is_plain = isinstance(
            runner, Runner
        )  # FlexibleRunner's strategies restore in their own way
        if not is_plain or not runner.cfg.get('resume') or 'meta' not in checkpoint:
            return
        schedulers = runner.param_schedulers or []
        saved = checkpoint.get('param_schedulers') or []
        if isinstance(schedulers, dict):
            same = isinstance(saved, dict) and all(
                _same(parts, saved.get(name, [])) for name, parts in schedulers.items()
            )
        else:
            same = _same(schedulers, saved) and _same_rates(runner.optim_wrapper, checkpoint)
        if not same:
            _follow(runner, checkpoint)
        _say_where_it_ends(runner)


def _same(schedulers: Sequence, saved: Sequence[Mapping]) -> bool:
    """Whether schedulers have the settings of saved ones."""
    return [_settings(vars(part)) for part in schedulers] == [_settings(part) for part in saved]


def _same_rates(wrapper: Any, checkpoint: Mapping) -> bool:
    """Whether an optimizer begins with the learning rates that a saved one began with."""
    saved = checkpoint.get('optimizer', {}).get('param_groups')
    if saved is None or isinstance(wrapper, OptimWrapperDict):
        return True
    old, new = (
        [group.get('initial_lr', group['lr']) for group in groups]
        for groups in (saved, wrapper.optimizer.param_groups)
    )
    return old == new


def _settings(state: Mapping) -> dict:
    progress = (*_PROGRESS, *(_PLATEAU if 'num_bad_epochs' in state else ()), 'optimizer')
    return {key: value for key, value in state.items() if key not in progress}


def _follow(runner: Runner, checkpoint: dict) -> None:
    """Put the config's schedule, moved to where the run is, into the checkpoint."""
    wrapper, schedulers = runner.optim_wrapper, runner.param_schedulers or []
    meta, saved = checkpoint['meta'], checkpoint.get('optimizer', {})
    followable = not isinstance(wrapper, OptimWrapperDict) and not any(
        hasattr(scheduler, 'num_bad_epochs') for scheduler in schedulers
    )
    if not followable:
        before = checkpoint.get('param_schedulers') or []
        raise RunError(
            f'the schedule of {runner.cfg.filename} is not that of the checkpoint, and cannot be '
            'followed, because it is of several optimizers or depends on past metrics: '
            f'{_describe(schedulers)} instead of {_describe(before)}'
        )
    old = [group['lr'] for group in saved.get('param_groups', [])]
    if old and len(old) != len(wrapper.optimizer.param_groups):
        raise RunError(
            f'the optimizer of {runner.cfg.filename} has {len(wrapper.optimizer.param_groups)} '
            f'groups of weights, that of the checkpoint {len(old)}: resume with the paramwise_cfg '
            'of the first run, or start anew with load_from'
        )
    epochs = meta['epoch'] if isinstance(runner.train_loop, EpochBasedTrainLoop) else 0
    with warnings.catch_warnings():  # PyTorch's, of a schedule that moves without its optimizer
        warnings.simplefilter('ignore')
        _advance(schedulers, meta['iter'], epochs, len(runner.train_dataloader))
    checkpoint['param_schedulers'] = [dict(scheduler.state_dict()) for scheduler in schedulers]
    for group, now in _pairs(saved, wrapper):
        group.update({key: value for key, value in now.items() if key != 'params'})
    rate = wrapper.optimizer.param_groups[0]['lr']
    print_log(
        'The schedule of the config is not that of the checkpoint. The run follows the config '
        f'from epoch {meta["epoch"]}, iteration {meta["iter"]}, and learning rate {rate:.4g}'
        + (f' (that of the checkpoint was {old[0]:.4g}).' if old else '.'),
        logger='current',
    )


def _pairs(saved: Mapping, wrapper: OptimWrapper) -> Iterator[tuple[dict, Mapping]]:
    """Each group of a saved optimizer with that of the config."""
    yield from zip(saved.get('param_groups', []), wrapper.optimizer.param_groups)
    if saved.get('base_param_settings') and wrapper.base_param_settings:
        yield saved['base_param_settings'], wrapper.base_param_settings


def _advance(schedulers: Sequence, iterations: int, epochs: int, epoch_length: int) -> None:
    """Step schedulers as MMEngine's hook does in the iterations and epochs of a run."""
    by_iteration = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    by_epoch = [scheduler for scheduler in schedulers if scheduler.by_epoch]
    done = 0
    for iteration in range(1, iterations + 1 if by_iteration else 1):
        for scheduler in by_iteration:
            scheduler.step()
        if iteration % epoch_length == 0 and done < epochs:
            done += 1
            for scheduler in by_epoch:
                scheduler.step()
    for _ in range(done, epochs):
        for scheduler in by_epoch:
            scheduler.step()


def _say_where_it_ends(runner: Runner) -> None:
    """Say that a schedule ends before the run, which then keeps its last values."""
    schedulers: Any = runner.param_schedulers or []
    loop = runner.train_loop
    if isinstance(schedulers, dict) or not all(hasattr(part, 'end') for part in schedulers):
        return
    left = [
        (loop.max_epochs if part.by_epoch else loop.max_iters) - part.end
        for part in schedulers
        if part.param_name == 'lr'
    ]
    if left and min(left) > 0:
        last = max(schedulers, key=lambda part: part.end)
        unit, end = ('epoch', loop.max_epochs) if last.by_epoch else ('iteration', loop.max_iters)
        print_log(
            f'The schedule of the config ends at {unit} {last.end} of {end}: from there the '
            'learning rate stays as it is; `param_scheduler` says so.',
            logger='current',
        )


def _describe(schedulers: Any) -> str:
    """Schedulers, or their saved states, in words."""
    if isinstance(schedulers, Mapping):
        return '; '.join(f'{name}: {_describe(parts)}' for name, parts in schedulers.items())
    states = [part if isinstance(part, Mapping) else vars(part) for part in schedulers]
    hidden = ('base_values', 'total_iters')
    return ', '.join(
        f'({", ".join(f"{k}={v}" for k, v in _settings(s).items() if k not in hidden)})'
        for s in states
    )
