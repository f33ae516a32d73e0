"""A training stops at the first loss, gradient or weight that is not finite."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from torch.utils.data import BatchSampler, DataLoader
from toy_run import PASS, quick, toy_config, train  # noqa: F401

from mmlocalattn.training import InvalidLossHook, RunError, invalid_loss, read_checkpoint
from mmlocalattn.training.checkpoint import last_whole_checkpoint, not_finite

pytestmark = pytest.mark.usefixtures('quick')
ROOT = Path(__file__).parents[2]


def stopped(cfg: Config) -> list[str]:
    """The lines with which a training stops."""
    with pytest.raises(RunError) as raised:
        train(cfg)
    return str(raised.value).splitlines()


def checkpoints(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob('*.pth'))


def test_invalid_loss_names_what_is_known(tmp_path: Path) -> None:
    cfg = toy_config(
        tmp_path,
        model=dict(broken_at=[PASS]),
        auto_scale_lr=dict(base_batch_size=16, enable=False),
    )
    lines = stopped(cfg)
    assert lines[0] == (
        'loss_cls is nan at epoch 2, iteration 4, learning rate 0.1; training has stopped'
    )
    assert lines[1].startswith('  images: ')
    assert lines[1].count('.png') == 2
    assert lines[2].startswith('  first to go: the loss; the weights were finite, the largest 0.')
    assert lines[3].startswith('  losses before: ')
    assert lines[3].count(',') == PASS - 1
    assert lines[4] == (
        '  possible causes: the learning rate is for 16 images a step and this run has 2: '
        '`--auto-scale-lr` divides it by 8'
    )
    good = tmp_path / 'epoch_1.pth'
    assert lines[5] == f'  last good checkpoint: {good} (nothing was written after it)'
    assert checkpoints(tmp_path) == ['epoch_1.pth']
    assert not not_finite(read_checkpoint(good)['state_dict'])


def test_loss_that_is_infinite_at_once(tmp_path: Path) -> None:
    cfg = toy_config(tmp_path, model=dict(broken_at=[0], factor=float('inf')), by_epoch=False)
    lines = stopped(cfg)
    assert lines[0].startswith('loss_cls is inf at epoch 1, iteration 1, ')
    assert lines[-1] == f'  last good checkpoint: none in {tmp_path} yet'
    assert 'a lower learning rate, a longer warm-up' in lines[-2]


def test_gradients_go_first(tmp_path: Path) -> None:
    """The loss of the iteration is finite, and its checkpoint would have NaN in all weights."""
    cfg = toy_config(tmp_path, 9, by_epoch=False)
    cfg.model.update(broken_at=[4], broken_gradient=True)
    lines = stopped(cfg)
    assert lines[0].startswith('gradients became NaN or infinite at epoch 1, iteration 5, ')
    names = 'head.bias, head.weight, body.weight, body.bias'
    assert lines[2].startswith('  first to go: the gradients of ')
    assert all(name in lines[2] for name in names.split(', '))
    assert lines[2].endswith('; the loss was finite')
    assert checkpoints(tmp_path) == ['iter_4.pth']


def test_weights_go_first(tmp_path: Path) -> None:
    """A learning rate that throws the weights out of float32 while gradients are finite."""
    cfg = toy_config(tmp_path, model=dict(broken_at=[0], factor=1e3))
    cfg.optim_wrapper.optimizer.lr = 1e38
    lines = stopped(cfg)
    assert 'learning rate 1e+38' in lines[0]
    assert lines[2].startswith('  first to go: the weights, ')
    assert lines[2].endswith(', before this iteration')


def test_accumulated_gradients(tmp_path: Path) -> None:
    """The optimizer steps every third iteration; the loss is looked at in each."""
    wrapper = dict(optim_wrapper=dict(accumulative_counts=3))
    cfg = toy_config(tmp_path, 9, by_epoch=False, model=dict(broken_at=[4]), **wrapper)
    lines = stopped(cfg)
    assert 'iteration 5' in lines[0]
    assert lines[2] == (
        '  first to go: the loss; the weights are finite, and no step with bad gradients was done'
    )
    assert checkpoints(tmp_path) == ['iter_4.pth']


@pytest.mark.parametrize(
    ('boxes', 'cause'),
    [
        ([[0, 0, 4, 4], [3, 3, 3, 9]], '1 boxes of no area in '),
        ([[0, 0, float('nan'), 4]], 'NaN in the boxes of '),
    ],
)
def test_annotations_are_looked_at(tmp_path: Path, boxes: Sequence, cause: str) -> None:
    cfg = toy_config(tmp_path, model=dict(broken_at=[0]))
    cfg.train_dataloader.dataset.boxes = boxes
    assert f'  possible causes: {cause}' in stopped(cfg)[-2]


def test_a_healthy_training_is_left_alone(tmp_path: Path) -> None:
    cfg = toy_config(tmp_path)
    train(cfg)
    assert checkpoints(tmp_path) == ['epoch_2.pth']


def test_parameters_without_elements() -> None:
    """As the embeddings of stand-alone attention with one channel per head: of no norm."""
    parameters = [torch.nn.Parameter(torch.ones(size)) for size in (2, 0)]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    torch.cat(parameters).sum().backward()
    assert invalid_loss._Step.of(optimizer).is_finite()
    parameters[0].grad = torch.tensor([1.0, float('inf')])
    assert not invalid_loss._Step.of(optimizer).is_finite()


def watch(
    hook: InvalidLossHook, losses: Sequence[float], tmp_path: Path, weight: float = 1.0
) -> int:
    """The number of iterations that a hook lets pass under a loss scaler, which skips steps."""
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, weight)
    scaler = SimpleNamespace(is_enabled=lambda: True)
    runner = SimpleNamespace(
        model=model,
        optim_wrapper=SimpleNamespace(loss_scaler=scaler, get_lr=lambda: dict(lr=[0.1])),
        train_dataloader=SimpleNamespace(batch_size=1),
        cfg=Config(),
        work_dir=str(tmp_path),
        epoch=0,
        iter=0,
    )
    for runner.iter, loss in enumerate(losses):
        try:
            hook.after_train_iter(runner, 0, None, dict(loss=torch.tensor(loss)))
        except RunError:
            return runner.iter
    return len(losses)


def test_a_loss_scaler_may_recover(tmp_path: Path) -> None:
    nan = float('nan')
    losses = [1.0, nan, nan, 1.0, nan, nan, nan, 1.0]
    assert watch(InvalidLossHook(patience=2), losses, tmp_path) == 6
    assert watch(InvalidLossHook(patience=3), losses, tmp_path) == 8
    assert watch(InvalidLossHook(patience=3), losses, tmp_path, weight=nan) == 1


def test_last_good_checkpoint(tmp_path: Path) -> None:
    """One with NaN, of a run without the hook, is passed over; the times of both are the same."""
    for epoch, value in ((9, 0.0), (10, float('nan'))):
        file = tmp_path / f'epoch_{epoch}.pth'
        torch.save(dict(state_dict=dict(a=torch.tensor(value))), file)
        os.utime(file, (1e9, 1e9))
    assert last_whole_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_10.pth')
    assert last_whole_checkpoint(str(tmp_path), finite=True) == str(tmp_path / 'epoch_9.pth')


RUN = """
import os
from pathlib import Path
from toy_run import toy_config, train
from mmlocalattn.training import run_errors

broken_at = [4] if os.environ['RANK'] == '1' else []
with run_errors():
    model = dict(broken_at=broken_at)
    train(toy_config(Path('run'), 9, by_epoch=False, launcher='pytorch', model=model))
"""


def test_all_processes_stop(tmp_path: Path) -> None:
    """The loss of the second process alone is NaN, and its images are the ones that are named."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = str(free.getsockname()[1])
    shared = dict(WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT=port, OMP_NUM_THREADS='1')
    shared['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', RUN],
            cwd=tmp_path,
            env=os.environ | shared | dict(RANK=str(rank), LOCAL_RANK=str(rank)),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], errors
    messages = [error[error.index('error: ') :] for error in errors]
    assert messages[0] == messages[1]
    assert messages[0].startswith('error: loss_cls is nan at epoch 1, iteration 5, ')
    assert checkpoints(tmp_path / 'run') == ['iter_4.pth']


def test_the_batch_is_that_of_the_batch_sampler() -> None:
    sampler = BatchSampler(range(8), batch_size=4, drop_last=False)
    loader = DataLoader(range(8), batch_sampler=sampler)
    cfg = Config(dict(auto_scale_lr=dict(base_batch_size=4)))
    runner = SimpleNamespace(cfg=cfg, train_dataloader=loader)
    assert list(invalid_loss._bad_settings(runner)) == []
