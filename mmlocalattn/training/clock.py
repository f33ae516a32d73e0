"""Training that ends at a given time: the length, the schedule and the evaluations by the clock.

``train_cfg = dict(type='mmlocalattn.ClockTrainLoop', minutes=30)`` is what :func:`apply_clock`
writes. Nothing is planned in iterations: after each one the loop asks :class:`Plan` how much time
is left for training, so that a machine that becomes slower gets fewer of them and the learning rate
falls as far as it would have.
"""

import time
from collections import deque
from collections.abc import Callable
from itertools import count
from math import cos, pi
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import broadcast, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop, Runner

from mmlocalattn.adapt.nodes import dicts
from mmlocalattn.registry import HOOKS, LOOPS
from mmlocalattn.training.errors import RunError

# Our choice, all of them: shares of the time.
WARM_UP = 0.05  # of training, in which the learning rate rises
LAST_RATE = 0.01  # of the learning rate, at the end
EVALUATIONS = 5  # at most, evenly over the training; the last one is its end
VALIDATION_SHARE = 0.25  # for evaluations: what would take more is left out before the end
TAIL_SHARE, TAIL_SECONDS = 0.01, 3.0  # kept free at the end for the report: the larger of the two
SAVE_SHARE, SAVE_SECONDS = 0.1, 60.0  # between two checkpoints: the larger of the two

FIRST_PROBE = 5  # iterations after which validation is tried, for the first ones are slow;
FIRST_PROBE_SHARE = 0.1  # or this share of the training if that is earlier
PROBED_BATCHES = 2  # of validation, of which the first starts the workers
PROBE_MARGIN = 1.1  # for the metrics and pictures, which are not tried
STEPS = 4  # iterations over which the speed is measured: other work comes and goes


def now() -> float:
    """Seconds, from any start."""
    return time.monotonic()


class Plan:
    """What there is time for.

    Args:
        seconds: From the start of the command to its end.
        now: The clock, in seconds.

    Attributes:
        started: When the command began, by the clock.
        fraction: Share of the training that is done, from 0 to 1; never falls.
        validation: Seconds of one evaluation, as last measured; None before that.
        is_measured: Whether that was a whole one.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = now) -> None:
        self.seconds = seconds
        self.now = now
        self.started = now()
        self.fraction = 0.0
        self.validation: float | None = None
        self._spent = 0.0  # by the runs that this one continues
        self._elapsed = 0.0  # after the last iteration
        self._training = 0.0  # seconds in iterations, those of earlier runs too
        self._evaluated = 0  # how often
        self.is_measured = False
        self._pace = 0.0  # seconds of an iteration around the last evaluation
        self._since = 0  # iterations after it
        self._steps: deque[float] = deque(maxlen=STEPS)

    def elapsed(self) -> float:
        """Seconds since the start, with those of the runs that this one continues."""
        return self._spent + self.now() - self.started

    def step(self) -> float:
        """Seconds of an iteration, of late."""
        return sum(self._steps) / len(self._steps) if self._steps else 0.0

    def trained(self, seconds: float) -> None:
        """Count an iteration that took so long, with its data."""
        self._steps.append(seconds)
        self._since += 1
        if self._since <= STEPS // 2:
            self._pace = self.step()
        self._training += seconds
        self._elapsed = self.elapsed()
        left = max(self.left(), 0.0)
        self.fraction = max(self.fraction, self._training / (self._training + left))

    def validated(self, seconds: float, whole: bool = True) -> None:
        """Note how long one evaluation takes, and whether it was done or only tried."""
        self.validation = seconds
        self._pace, self._since = self.step(), 0
        self._evaluated += whole
        self.is_measured |= whole

    def expected_validation(self) -> float:
        """Seconds of the next evaluation, should the machine be as fast as in the last steps."""
        slower = self.step() / self._pace if self._pace else 1.0
        return (self.validation or 0.0) * slower

    def left(self) -> float:
        """Seconds left for iterations; below 0 if there are none."""
        tail = max(TAIL_SHARE * self.seconds, TAIL_SECONDS)
        evaluations = max(1, min(self._planned(), self._affordable()))
        return self.seconds - self.elapsed() - tail - evaluations * self.expected_validation()

    def is_last(self) -> bool:
        """Whether the coming iteration is the last one there is time for."""
        latest = self._steps[-1] if self._steps else 0.0
        return self.left() < 1.5 * max(self.step(), latest)

    def milestone(self) -> int:
        """How many of the moments for an evaluation before the last one are past."""
        return sum(self.fraction >= n / EVALUATIONS for n in range(1, EVALUATIONS))

    def can_evaluate(self) -> bool:
        """Whether there is time for an evaluation now, besides those to come."""
        return self._affordable() > self._planned()

    def state(self) -> dict[str, float]:
        """What a run that continues this one needs."""
        return dict(
            elapsed=self._elapsed,
            training=self._training,
            fraction=self.fraction,
            evaluated=self._evaluated,
        )

    def resume(self, state: dict[str, float]) -> None:
        """Continue the plan of another run."""
        self._spent, self._training = state['elapsed'], state['training']
        self.fraction, self._evaluated = state['fraction'], int(state['evaluated'])

    def save_is_due(self, saved: float) -> bool:
        """Whether a checkpoint of so many seconds after the start is too old."""
        return self._elapsed - saved >= max(SAVE_SHARE * self.seconds, SAVE_SECONDS)

    def _planned(self) -> int:
        """Evaluations to come if there is time for all of them."""
        return EVALUATIONS - self.milestone()

    def _affordable(self) -> int:
        """Evaluations to come that take no more than their share of the time."""
        cost = self.expected_validation()
        if cost <= 0:
            return EVALUATIONS
        return int(VALIDATION_SHARE * self.seconds / cost) - self._evaluated


def rate_factor(fraction: float) -> float:
    """Learning rate, as a share of its full value, when a share of the training is done.

    It rises linearly, then falls as a cosine.
    """
    if fraction < WARM_UP:
        return max(fraction / WARM_UP, 1e-3)
    progress = (min(fraction, 1.0) - WARM_UP) / (1 - WARM_UP)
    return LAST_RATE + (1 - LAST_RATE) * (1 + cos(pi * progress)) / 2


@LOOPS.register_module()
class ClockTrainLoop(IterBasedTrainLoop):
    """Iterations until the time is over, the last evaluation included.

    Args:
        runner: Of MMEngine.
        dataloader: With endless batches (``InfiniteSampler``).
        minutes: From the start of the command, or of the loop, to the end of the run.
    """

    def __init__(self, runner: Runner, dataloader: Any, minutes: float) -> None:
        super().__init__(runner, dataloader, max_iters=2**31)
        self.plan = Plan(60 * minutes, _shared_now)

    def run(self) -> torch.nn.Module:
        """Train, evaluate and save until the time is over."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        for _ in range(self._iter):  # batches of the run that this one continues
            next(self.dataloader_iterator)
        milestone = self.plan.milestone()
        for trained in count(1):
            self._train_once(is_first=trained == 1)
            if self._iter >= self._max_iters or self.stop_training:
                break
            untried = self.plan.validation is None and (
                trained >= FIRST_PROBE or self.plan.fraction >= FIRST_PROBE_SHARE
            )
            if untried or self.plan.milestone() > milestone:
                milestone = self.plan.milestone()
                self._evaluate_or_probe()
        if self.runner.val_loop is not None:
            self.runner.val_loop.run()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        print_log(
            f'{self._iter} iterations; {self.plan.elapsed() / 60:.2f} of '
            f'{self.plan.seconds / 60:g} minutes are over',
            logger='current',
        )
        return self.runner.model

    def _train_once(self, is_first: bool) -> None:
        began = self.plan.now()
        self.runner.model.train()
        batch = next(self.dataloader_iterator)
        step = self.plan.step()
        if step:  # what hooks see: the end of the run, or how far it seems to be
            more = 1 if self.plan.is_last() else max(2, int(self.plan.left() / step))
            self._max_iters = self._iter + more
        self.run_iter(batch)
        seconds = self.plan.now() - began
        if not is_first or seconds > FIRST_PROBE_SHARE * self.plan.seconds / 2:
            self.plan.trained(seconds)  # else it is no measure: it starts workers and compiles

    def _evaluate_or_probe(self) -> None:
        """Evaluate if there is time for it, else find out how long the last evaluation takes."""
        loop = self.runner.val_loop
        if loop is None:
            return
        began = self.plan.now()
        if self.plan.validation is not None and self.plan.can_evaluate():
            loop.run()
            self.plan.validated(self.plan.now() - began)
            return
        if self.plan.is_measured:  # the speed of the machine tells the rest
            return
        seconds = PROBE_MARGIN * self._probe(loop)
        self.plan.validated(seconds, whole=False)
        if self.plan.left() < 0 and self.plan.fraction < 0.5:
            raise RunError(
                f'an evaluation on {len(loop.dataloader.dataset)} images takes about '
                f'{seconds / 60:.1f} of the {self.plan.seconds / 60:g} minutes: give '
                'more minutes, or evaluate on fewer, as with '
                '--cfg-options val_dataloader.dataset.indices=100'
            )

    def _probe(self, loop: Any) -> float:
        """Seconds of an evaluation, from its first batches."""
        self.runner.model.eval()
        ends = [self.plan.now()]
        with torch.no_grad():
            for _, batch in zip(range(PROBED_BATCHES), loop.dataloader):
                self.runner.model.val_step(batch)
                ends.append(self.plan.now())
        others = len(loop.dataloader) - (len(ends) - 1)
        return ends[-1] - ends[0] + others * (ends[-1] - ends[-2])


@HOOKS.register_module()
class ClockHook(Hook):
    """Sets the learning rate by the clock, and keeps the plan in the checkpoints."""

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Remember the full learning rates; a resumed optimizer brings them."""
        for group in runner.optim_wrapper.param_groups:
            group.setdefault('initial_lr', group['lr'])

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Set the learning rate of the step."""
        factor = rate_factor(runner.train_loop.plan.fraction)
        for group in runner.optim_wrapper.param_groups:
            group['lr'] = factor * group['initial_lr']

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Store the time that is over."""
        checkpoint['clock'] = runner.train_loop.plan.state()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Continue a plan, not one of weights that are only started from."""
        if runner.cfg.get('resume') and 'clock' in checkpoint:
            runner.train_loop.plan.resume(checkpoint['clock'])


@HOOKS.register_module()
class ClockCheckpointHook(CheckpointHook):
    """Saves by the clock, and at the end."""

    _saved = 0.0

    def every_n_train_iters(self, runner: Runner, n: int, start: int = 0) -> bool:
        """Whether the last checkpoint is old enough."""
        plan = runner.train_loop.plan
        is_due = plan.save_is_due(self._saved)
        if is_due:
            self._saved = plan.state()['elapsed']
        return is_due


def apply_clock(cfg: Config, minutes: float) -> None:
    """Let a config train for so many minutes, from the start of the command to its end.

    Its schedule, sampler and checkpoints become those of the clock. What a config does late in its
    training, as to leave out mosaics in the last epochs, is done from the start.

    Args:
        cfg: Changed in place.
        minutes: More than 0.

    Raises:
        ValueError: If there is no time.
    """
    if minutes <= 0:
        raise ValueError(f'--minutes must be more than 0, got {minutes:g}')
    cfg.train_cfg = dict(type='mmlocalattn.ClockTrainLoop', minutes=minutes)
    cfg.param_scheduler = None
    loader = cfg.train_dataloader
    loader.sampler = dict(type='InfiniteSampler', shuffle=True)
    loader.pop('batch_sampler', None)
    hooks = cfg.get('default_hooks') or {}
    cfg.default_hooks = {
        **hooks,
        'checkpoint': dict(
            type='mmlocalattn.ClockCheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=2
        ),
        'logger': {**hooks.get('logger', dict(type='LoggerHook')), 'interval': 10},
    }
    cfg.log_processor = {**cfg.get('log_processor', {}), 'window_size': 10, 'by_epoch': False}
    cfg.custom_hooks = [
        *_without_late_changes(cfg),
        dict(type='mmlocalattn.ClockHook'),
    ]


def _without_late_changes(cfg: Config) -> list[dict]:
    """The hooks of a config, and those that change the training in its last epochs done now."""
    kept = []
    for hook in cfg.get('custom_hooks') or []:
        kind = str(hook['type']).rpartition('.')[2]
        if kind == 'PipelineSwitchHook':
            *_, leaf = (part for part in dicts(cfg.train_dataloader.dataset) if 'pipeline' in part)
            leaf['pipeline'] = hook['switch_pipeline']
        elif kind == 'YOLOXModeSwitchHook':
            skipped = hook.get('skip_type_keys', ('Mosaic', 'RandomAffine', 'MixUp'))
            cfg.train_dataloader.dataset['skip_type_keys'] = skipped
        else:
            kept.append(hook)
    return kept


def start_clock(runner: Runner, started: float) -> None:
    """Let the time of a run count from when its command began.

    Args:
        runner: Any; one without the clock is left alone.
        started: Of :func:`now`.
    """
    loop = runner.train_loop
    if isinstance(loop, ClockTrainLoop):
        loop.plan.started = _shared(started)


def _shared_now() -> float:
    return _shared(now())


def _shared(moment: float) -> float:
    """A moment of the first process, so that all of them decide alike."""
    if get_world_size() == 1:
        return moment
    value = torch.tensor([moment], dtype=torch.float64)
    broadcast(value)
    return float(value)
