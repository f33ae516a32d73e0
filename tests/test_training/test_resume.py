"""Where a run resumes, and the sampler's position, without loading the images before it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmlocalattn.training import ExactResumeHook, apply_resume
from mmlocalattn.training.processes import NUMBER

BATCH = 3


class Numbers(Dataset):
    """0 to 9; remembers what was asked for."""

    def __init__(self) -> None:
        self.loaded = []

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        self.loaded.append(index)
        return index


def make_loop(num_workers: int, iteration: int) -> IterBasedTrainLoop:
    """A training loop of MMEngine as a resume leaves it."""
    data = Numbers()
    loader = DataLoader(
        data,
        batch_size=BATCH,
        sampler=InfiniteSampler(data, seed=7),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    runner = SimpleNamespace(visualizer=SimpleNamespace())
    loop = IterBasedTrainLoop(runner, loader, max_iters=100)
    loop._iter = iteration
    return loop


def run(loop: IterBasedTrainLoop, hook: Hook) -> list[Tensor]:
    """Runs MMEngine's own loop to its end; returns the batches it would train on."""
    batches = []

    def run_iter(batch: Tensor) -> None:
        batches.append(batch)
        loop._iter += 1

    loop.run_iter = run_iter
    loop.runner.train_loop, loop.runner.val_loop = loop, None
    loop.runner.model = nn.Identity()
    loop.runner.call_hook = lambda name: getattr(hook, name)(loop.runner)
    loop.run()
    return batches


@pytest.mark.parametrize('num_workers', [0, 1])
@pytest.mark.parametrize('iteration', [1, 5, 96])
def test_position(num_workers: int, iteration: int) -> None:
    expected = run(make_loop(0, 0), Hook())[iteration:]

    loop = make_loop(num_workers, iteration)
    batches = run(loop, ExactResumeHook())
    torch.testing.assert_close(batches, expected)
    if num_workers == 0:  # a worker's copy of the data set is out of sight
        assert loop.dataloader.dataset.loaded == torch.cat(batches).tolist()


def test_fresh_run_is_left_alone() -> None:
    loop = make_loop(0, 0)
    before = loop.dataloader_iterator
    ExactResumeHook().before_train_epoch(SimpleNamespace(train_loop=loop))
    assert loop.dataloader_iterator is before


def test_other_samplers_are_left_to_mmengine() -> None:
    loop = make_loop(0, 5)
    data = loop.dataloader.dataset
    loop.dataloader = DataLoader(data, batch_size=BATCH, sampler=DefaultSampler(data, seed=7))
    before = loop.dataloader_iterator
    ExactResumeHook().before_train_epoch(SimpleNamespace(train_loop=loop))
    assert loop.dataloader_iterator is before


def test_mmengine_that_skips_by_itself_is_left_alone() -> None:
    loop = make_loop(0, 5)
    loop.dataloader_iterator.skip_iter = lambda count: None
    before = loop.dataloader_iterator
    ExactResumeHook().before_train_epoch(SimpleNamespace(train_loop=loop))
    assert loop.dataloader_iterator is before


def test_epoch_based_run_is_left_alone() -> None:
    loop = object.__new__(EpochBasedTrainLoop)
    loop._iter = 5
    ExactResumeHook().before_train_epoch(SimpleNamespace(train_loop=loop))


def draw(seed: int, rank: int, iteration: int) -> float:
    runner = SimpleNamespace(seed=seed, rank=rank, iter=iteration)
    ExactResumeHook().before_train_iter(runner, 0)
    return torch.rand(()).item()


def test_every_step_has_its_own_random_numbers() -> None:
    steps = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]
    draws = [draw(*step) for step in steps]
    assert len(set(draws)) == len(steps)
    assert [draw(*step) for step in reversed(steps)] == draws[::-1]


def test_a_config_that_resumes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cfg = Config(dict(work_dir=str(tmp_path), randomness=dict(seed=1, deterministic=True)))
    apply_resume(cfg, 'auto')
    assert f'No checkpoint in {tmp_path}: training from the start.' in capsys.readouterr().out
    assert 'resume' not in cfg
    checkpoint = str(tmp_path / 'epoch_1.pth')
    torch.save(dict(meta=dict(seed=17, epoch=1, iter=9), message_hub={}), checkpoint)
    apply_resume(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (True, checkpoint)
    assert cfg.randomness == dict(seed=17, deterministic=True)
    assert capsys.readouterr().out == f'Resuming from {checkpoint}.\n'
    cfg.train_cfg = dict(max_epochs=1)
    apply_resume(cfg, checkpoint)
    message = (
        'It is at the end, epoch 1 of 1: nothing is left to train. Raise train_cfg.max_epochs,'
    )
    assert message in capsys.readouterr().out


def test_checkpoints_that_cannot_be_resumed(tmp_path: Path) -> None:
    cfg, broken = Config(dict(work_dir=str(tmp_path))), tmp_path / 'epoch_1.pth'
    with pytest.raises(FileNotFoundError, match=r"checkpoint 'no\.pth' does not exist"):
        apply_resume(cfg, 'no.pth')
    broken.write_text('half')
    with pytest.raises(ValueError, match=r'is not whole; --resume alone finds one that is'):
        apply_resume(cfg, str(broken))
    torch.save(dict(state_dict={}), broken)
    message = r'has no state of a training to resume: .* --cfg-options load_from=.*epoch_1\.pth$'
    with pytest.raises(ValueError, match=message):
        apply_resume(cfg, str(broken))
    assert 'resume' not in cfg


def test_checkpoints_of_divided_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    cfg, folder = Config(dict(work_dir=str(tmp_path))), tmp_path / 'epoch_1.pth'
    folder.mkdir()
    apply_resume(cfg, 'auto')
    assert 'No checkpoint in' in capsys.readouterr().out  # an empty folder is none
    for rank in range(2):
        state = dict(meta=dict(seed=17, epoch=1, iter=9), message_hub={})
        torch.save(state, folder / f'rank{rank}.pth')
    with pytest.raises(ValueError, match='has the files of 2 processes, this training has 1:'):
        apply_resume(cfg, 'auto')
    assert 'resume' not in cfg
    for name, variable in (('auto', 'WORLD_SIZE'), (str(folder), 'SLURM_NTASKS')):
        for other in NUMBER:
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv(variable, '2')
        apply_resume(cfg, name)
        assert (cfg.load_from, cfg.randomness.seed) == (str(folder), 17)
    torch.save(dict(part=SimpleNamespace()), folder / 'rank0.pth')
    with pytest.raises(ValueError, match='hold parts of tensors, which weights_only=True refuses'):
        apply_resume(cfg, str(folder))
    (folder / 'rank1.pth').write_text('half')
    with pytest.raises(ValueError, match='is not whole; --resume alone finds one that is'):
        apply_resume(cfg, str(folder))
