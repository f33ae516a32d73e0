"""What is said before a run is built."""

import os
from pathlib import Path

import pytest
from mmengine.config import Config

from mmlocalattn.training import check_run, complete_parts

TRAIN = dict(train_dataloader={}, train_cfg=dict(max_epochs=1), optim_wrapper={})
VAL = dict(val_dataloader={'a': 1}, val_cfg={'type': 'ValLoop'}, val_evaluator={'b': 2})


def config(**entries: object) -> Config:
    model = dict(type='Toy')
    return Config(dict(model=model, work_dir='run', **entries), filename=__file__)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ('launcher', 'message'),
    [
        (
            'pytorch',
            '^--launcher pytorch is for processes that are started by torchrun, as `bash '
            'tools/dist_train.sh CONFIG GPUS`: RANK is not set. Leave it out for one process.$',
        ),
        ('slurm', 'started by srun, .*: SLURM_PROCID is not set'),
        ('mpi', 'started by mpirun: OMPI_COMM_WORLD_RANK is not set'),
    ],
)
def test_launcher(launcher: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=message):
        check_run(config(launcher=launcher, **TRAIN), 'train')
    for variable in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        monkeypatch.setenv(variable, '0')
    check_run(config(launcher=launcher, **TRAIN), 'train')


def test_work_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    Path('run').write_text('a file')
    with pytest.raises(NotADirectoryError, match=r"^'run' cannot be a folder: '.*/run' is a file$"):
        check_run(config(**TRAIN), 'train')
    Path('run').unlink()
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # a superuser may do everything
    with pytest.raises(PermissionError, match=r"^'run' cannot be written: no permission for '/"):
        check_run(config(**TRAIN), 'train')


@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        (dict(train_dataloader=dict(batch_size=0)), r'train_dataloader\.batch_size of .* got 0$'),
        (dict(train_cfg=dict(max_epochs=0)), r'^train_cfg\.max_epochs of .* 1 or more, got 0$'),
        (dict(train_cfg=dict(max_iters='a')), r"^train_cfg\.max_iters of .* 1 or more, got 'a'$"),
        (
            dict(optim_wrapper=dict(optimizer=dict(type='Nothing'))),
            r"there is no optimizer 'Nothing'; registered are .*, AdamW, .*, SGD",
        ),
    ],
)
def test_numbers_and_names(entries: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_run(config(**{**TRAIN, **entries}), 'train')
    optimizer = dict(optimizer=dict(type='SGD'))
    check_run(config(**{**TRAIN, 'optim_wrapper': optimizer}), 'train')


def test_a_base_without_a_model() -> None:
    cfg = config(**TRAIN)
    cfg.model = None
    with pytest.raises(ValueError, match=r'has no model: it is a base of configs, and no config$'):
        check_run(cfg, 'train')


def test_weights_to_start_from() -> None:
    with pytest.raises(FileNotFoundError, match=r"^load_from of .*: 'no\.pth' does not exist$"):
        check_run(config(load_from='no.pth', **TRAIN), 'train')


def test_without_validation(capsys: pytest.CaptureFixture) -> None:
    cfg = config(**TRAIN, **{**VAL, 'val_dataloader': None})
    complete_parts(cfg, 'train')
    assert (cfg.val_dataloader, cfg.val_cfg, cfg.val_evaluator) == (None, None, None)
    assert 'has no val_dataloader: no validation.' in capsys.readouterr().out
    cfg = config(**TRAIN, val_cfg={})
    complete_parts(cfg, 'train')
    assert cfg.val_cfg is None
    assert 'no validation' not in capsys.readouterr().out


def test_loops_have_a_default() -> None:
    cfg = config(**TRAIN, **{**VAL, 'val_cfg': None})
    complete_parts(cfg, 'train')
    assert cfg.val_cfg == {}
    assert cfg.val_evaluator == {'b': 2}


def test_a_test_needs_nothing_of_a_training() -> None:
    test = {f'test{key.removeprefix("val")}': value for key, value in VAL.items()}
    cfg = config(train_dataloader={}, param_scheduler=[], **test)
    complete_parts(cfg, 'test')
    assert (cfg.train_dataloader, cfg.param_scheduler) == (None, None)
    assert cfg.test_dataloader == {'a': 1}


@pytest.mark.parametrize(
    ('task', 'entries', 'message'),
    [
        ('train', {}, 'has no train_dataloader, train_cfg, optim_wrapper: a training needs all'),
        (
            'train',
            {**TRAIN, 'val_dataloader': {'a': 1}},
            'has val_dataloader and no val_evaluator: set both or neither',
        ),
        ('test', TRAIN, 'has no test_dataloader and test_evaluator, and no val_dataloader and val'),
    ],
)
def test_parts_without_a_default(task: str, entries: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf'^{__file__} {message}'):
        complete_parts(config(**entries), task)
