"""What is said before a run is built."""

import os
from pathlib import Path

import pytest
from mmengine.config import Config

from mmlocalattn.training import check_run, complete_parts

TRAIN = dict(
    train_dataloader=dict(dataset={}),
    train_cfg=dict(max_epochs=1),
    optim_wrapper=dict(optimizer=dict(type='SGD')),
)
VAL = dict(val_dataloader={'dataset': {}}, val_cfg={'type': 'ValLoop'}, val_evaluator={'b': 2})


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
        (dict(train_dataloader=dict(batch_size=0)), r'^train_dataloader\.batch_size of .* got 0$'),
        (dict(train_cfg=dict(max_epochs=0)), r'^train_cfg\.max_epochs of .* 1 or more, got 0$'),
        (dict(train_cfg=dict(max_iters='a')), r"^train_cfg\.max_iters of .* 1 or more, got 'a'$"),
        (
            dict(train_cfg=dict(max_epochs=2.0)),
            r'^train_cfg\.max_epochs of .* must be a whole number, 1 or more, got 2\.0$',
        ),
        (
            dict(optim_wrapper=dict(optimizer=dict(type='Nothing'))),
            r"there is no optimizer 'Nothing'; registered are .*, AdamW, .*, SGD",
        ),
        (dict(optim_wrapper=dict(type='OptimWrapper')), r'^optim_wrapper of .* has no optimizer$'),
        (dict(randomness=dict(seed='abc')), r"^randomness\.seed of .* 0 or more, got 'abc'$"),
        (dict(train_dataloader=dict(num_workers=-1)), r'num_workers of .* 0 or more, got -1$'),
        (dict(train_cfg={'by_epoch': True}), r'must have either max_epochs or max_iters$'),
        (dict(train_cfg=dict(max_epochs=1, max_iters=1)), r'must have either max_epochs or max_it'),
        (dict(train_cfg=dict(max_epochs=1, val_interval=0)), r'val_interval of .* more, got 0$'),
        (
            {**VAL, 'val_evaluator': dict(type='IoUMetric', iou_metrics=['mIoU', 'iou'])},
            r"^val_evaluator\.iou_metrics of .*: there is no 'iou', only mIoU, mDice, mFscore$",
        ),
        (dict(train_cfg=5), r'^train_cfg of .* must be a dict, got 5$'),
        (dict(train_dataloader=dict(batch_size=1)), r'^train_dataloader of .* has no dataset$'),
        (dict(default_hooks=[]), r'^default_hooks of .* must be a dict, got \[\]$'),
        (
            dict(custom_hooks=['EMAHook']),
            r"^custom_hooks of .* list of dicts, got \['EMAHook'\]$",
        ),
        (dict(param_scheduler=5), r'^param_scheduler of .* must be a list of dicts, got 5$'),
        (
            dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, foo=1))),
            r"^default_hooks\.checkpoint of .*: CheckpointHook has no 'foo'$",
        ),
    ],
)
def test_numbers_and_names(entries: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_run(config(**{**TRAIN, **entries}), 'train')
    checkpoint = dict(type='CheckpointHook', interval=-1, save_best='auto', out_dir='a')
    check_run(config(default_hooks=dict(checkpoint=checkpoint), **TRAIN), 'train')


def test_a_loop_of_another_kind_ends_as_it_likes() -> None:
    check_run(config(**{**TRAIN, 'train_cfg': dict(type='mine.Loop', hours=3)}), 'train')


def test_what_is_none_gets_its_default() -> None:
    cfg = config(default_hooks=None, env_cfg=None, randomness=None, custom_hooks=None, **TRAIN)
    check_run(cfg, 'train')
    assert not {'default_hooks', 'env_cfg', 'randomness', 'custom_hooks'} & set(cfg)


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
    assert cfg.test_dataloader == {'dataset': {}}


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


def test_epochs_that_never_end() -> None:
    sampler = dict(type='mmengine.InfiniteSampler')
    loader = dict(dataset={}, sampler=sampler)
    message = r'^train_dataloader\.sampler of .* is an InfiniteSampler, .* no epoch ends: set its'
    with pytest.raises(ValueError, match=message):
        check_run(config(**{**TRAIN, 'train_dataloader': loader}), 'train')
    by_iteration = dict(type='IterBasedTrainLoop', max_iters=1)
    check_run(config(**{**TRAIN, 'train_dataloader': loader, 'train_cfg': by_iteration}), 'train')
    with pytest.raises(ValueError, match=r'^val_dataloader\.sampler'):
        check_run(config(**{**TRAIN, **VAL, 'val_dataloader': loader}), 'train')
