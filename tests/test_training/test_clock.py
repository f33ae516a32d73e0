"""Training by the clock: where it ends, on machines of a pretended time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.utils import ManagerMixin
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmlocalattn.training import ExactResumeHook, apply_resume, clock
from mmlocalattn.training.clock import Plan, apply_clock, rate_factor, start_clock

MINUTES = 6.0
SECONDS = 60 * MINUTES


class Machine:
    """A clock that stands still but for what is done.

    Args:
        step: Seconds of an iteration at some time.
        validation: Seconds of one image of validation, in units of an iteration.
    """

    def __init__(self, step: Callable[[float], float], validation: float = 0.15) -> None:
        self.step, self.validation = step, validation
        self.time = 1000.0
        self.rates: list[float] = []
        self.evaluated_at: list[float] = []

    def now(self) -> float:
        return self.time

    def elapsed(self) -> float:
        return self.time - 1000.0

    def work(self, units: float = 1.0) -> None:
        self.time += units * self.step(self.elapsed())


class Numbers(Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.ones(1))


class Model(BaseModel):
    """Takes the time of its machine."""

    machine: Machine

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs: Tensor, mode: str) -> dict | list:
        if mode == 'loss':
            self.machine.work()
            return dict(loss=self.layer(inputs).sum())
        self.machine.work(self.machine.validation * len(inputs))
        return [0] * len(inputs)


class Moment(BaseMetric):
    def process(self, data_batch: object, data_samples: object) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict:
        Model.machine.evaluated_at.append(Model.machine.elapsed())
        return dict(score=0.0)


def make_runner(work_dir: Path, resume: bool = False) -> Runner:
    loader = dict(
        dataset=Numbers(), batch_size=2, num_workers=0, collate_fn=dict(type='default_collate')
    )
    cfg = Config(
        dict(
            train_dataloader={**loader, 'sampler': dict(type='DefaultSampler', shuffle=True)},
            val_dataloader={**loader, 'sampler': dict(type='DefaultSampler', shuffle=False)},
            val_cfg={},
            val_evaluator=[Moment()],
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            param_scheduler=dict(type='MultiStepLR', milestones=[8]),
            work_dir=str(work_dir),
            default_scope='mmengine',
        ),
    )
    apply_clock(cfg, MINUTES)
    if resume:
        apply_resume(cfg, 'auto')
    cfg = cfg.to_dict()
    resume, load_from = cfg.pop('resume', False), cfg.pop('load_from', None)
    runner = Runner(
        Model(), **cfg, resume=resume, load_from=load_from, cfg=dict(resume=resume),
        experiment_name=f'clock_{work_dir.name}_{resume}',
    )  # fmt: skip
    runner.register_hook(ExactResumeHook())
    return runner


@pytest.fixture
def run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runner]:
    """``run_on(machine)``: a run whose time is that of the machine."""

    def run(machine: Machine, resume: bool = False, start_up: float = 5.0) -> Runner:
        monkeypatch.setattr(clock, 'now', machine.now)
        monkeypatch.setattr(Model, 'machine', machine, raising=False)
        started = machine.now()
        machine.time += start_up  # building the model, reading the data
        ManagerMixin._instance_dict.clear()
        runner = make_runner(tmp_path, resume)
        start_clock(runner, started)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        step = runner.model.train_step

        def remember(*args: object, **options: object) -> dict:
            machine.rates.append(runner.optim_wrapper.param_groups[0]['lr'])
            return step(*args, **options)

        runner.model.train_step = remember
        runner.train()
        return runner

    return run


def becomes_slow(factor: float) -> Callable[[float], float]:
    return lambda elapsed: 2.0 * (factor if elapsed > SECONDS / 2 else 1.0)


@pytest.mark.parametrize(
    ('machine', 'evaluations'),
    [
        (Machine(lambda elapsed: 2.0), 5),
        (Machine(becomes_slow(4.0)), 4),
        (Machine(becomes_slow(0.25)), 5),
        (Machine(lambda elapsed: 1.0 * (1 + int(elapsed) % 3)), 5),
        (Machine(lambda elapsed: 6.0, 0.3), 2),
        (Machine(lambda elapsed: 2.0, 2.5), 1),
        (Machine(lambda elapsed: 9.0, 0.05), 5),
    ],
    ids=['idle', 'slower', 'faster', 'busy', 'slow', 'slow validation', 'slow steps'],
)
def test_ends_in_time(machine: Machine, evaluations: int, run_on: Callable[..., Runner]) -> None:
    machine.__init__(machine.step, machine.validation)
    run_on(machine)
    assert 0.95 * SECONDS < machine.elapsed() < 1.05 * SECONDS
    assert machine.evaluated_at[-1] == machine.elapsed()  # the last thing it does
    assert len(machine.evaluated_at) == evaluations


def test_learning_rate_follows_the_time(run_on: Callable[..., Runner]) -> None:
    machine = Machine(becomes_slow(4.0))
    run_on(machine)
    highest = max(range(len(machine.rates)), key=machine.rates.__getitem__)
    assert machine.rates[0] == pytest.approx(1e-4)
    assert machine.rates[highest] == pytest.approx(0.1, rel=0.01)
    assert machine.rates[-1] < 0.002
    # Half of the time is over when the machine slows down, with most of the steps.
    assert machine.rates[round(0.8 * len(machine.rates))] == pytest.approx(0.05, rel=0.3)


def test_resume_keeps_the_plan(run_on: Callable[..., Runner]) -> None:
    machine = Machine(lambda elapsed: 2.0)

    class Killed(Exception):
        pass

    def step(elapsed: float) -> float:
        if elapsed > 0.55 * SECONDS and not machine.killed:
            machine.killed = True
            raise Killed
        return 2.0

    machine.killed, machine.step = False, step
    with pytest.raises(Killed):
        run_on(machine)
    rate, lost_at = machine.rates[-1], machine.elapsed()
    runner = run_on(machine, resume=True)
    first_run = runner.train_loop.plan._spent
    assert lost_at - 60 - 3 <= first_run <= lost_at
    assert 0.95 * SECONDS < first_run + machine.elapsed() - lost_at < 1.05 * SECONDS
    again = machine.rates[machine.rates.index(rate) + 1]
    assert rate < again < 1.5 * rate  # where the checkpoint was, not the warm-up
    assert machine.rates[-1] < 0.002


def test_validation_that_takes_all_the_time(run_on: Callable[..., Runner]) -> None:
    with pytest.raises(ValueError, match=r'on 20 images takes about 11\.0 of the 6 min'):
        run_on(Machine(lambda elapsed: 2.0, 15.0))


def test_rate() -> None:
    assert rate_factor(0.0) == 1e-3
    assert rate_factor(clock.WARM_UP) == 1.0
    assert rate_factor(1.0) == pytest.approx(clock.LAST_RATE)
    assert rate_factor(0.5) > rate_factor(0.6)


def test_share_never_falls() -> None:
    times = iter(range(1000))
    plan = Plan(100, lambda: float(next(times)))
    shares = []
    for _ in range(20):
        plan.trained(1.0)
        shares.append(plan.fraction)
    plan.validated(8.0, whole=False)
    plan.trained(1.0)
    assert shares == sorted(shares)
    assert plan.fraction >= shares[-1] > 0


def test_what_is_done_late_is_done_at_once() -> None:
    late = [dict(type='LoadImageFromFile')]
    cfg = Config(
        dict(
            train_dataloader=dict(
                batch_sampler=dict(type='AspectRatioBatchSampler'),
                dataset=dict(type='CocoDataset', pipeline=[dict(type='CachedMosaic')]),
            ),
            custom_hooks=[
                dict(type='EMAHook'),
                dict(type='PipelineSwitchHook', switch_epoch=280, switch_pipeline=late),
            ],
        )
    )
    apply_clock(cfg, 2)
    assert cfg.train_dataloader.dataset.pipeline == late
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook', 'mmlocalattn.ClockHook']
    assert 'batch_sampler' not in cfg.train_dataloader
    with pytest.raises(ValueError, match='must be more than 0, got -1'):
        apply_clock(cfg, -1)
