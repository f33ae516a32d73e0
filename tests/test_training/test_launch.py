"""Configs written for GPUs run without one."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict

from mmlocalattn.training import (
    RunError,
    adapt_to_device,
    build_runner,
    enable_amp,
    enable_auto_scale_lr,
    launch,
)


def gpu_config(**kwargs: object) -> Config:
    return Config(
        dict(
            model=dict(
                type='Toy',
                norm_cfg=dict(type='SyncBN', requires_grad=True),
                heads=[dict(norm_cfg=dict(type='SyncBN')), dict(norm_cfg=dict(type='GN'))],
            ),
            optim_wrapper=dict(
                type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16', optimizer=dict(lr=1)
            ),
            **kwargs,
        )
    )


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    cfg = gpu_config()
    adapt_to_device(cfg)
    assert cfg.optim_wrapper == dict(type='OptimWrapper', optimizer=dict(lr=1))
    assert cfg.model.norm_cfg == dict(type='BN', requires_grad=True)
    assert [head.norm_cfg.type for head in cfg.model.heads] == ['BN', 'GN']
    assert 'model_wrapper_cfg' not in cfg
    assert 'train_dtype' not in cfg
    assert 'training in float32' in capsys.readouterr().out


def test_several_processes_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = []
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(torch.distributed, 'init_process_group', backends.append)
    monkeypatch.setattr(launch, 'get_world_size', lambda: 2)
    cfg = gpu_config(launcher='pytorch', find_unused_parameters=True)
    adapt_to_device(cfg)
    assert backends == ['gloo']
    assert cfg.model_wrapper_cfg.device_ids is None
    assert cfg.model_wrapper_cfg.find_unused_parameters is True
    assert cfg.model.norm_cfg == dict(type='mmlocalattn.CPUSyncBN', requires_grad=True)


def test_with_a_gpu_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, 'get_device', lambda: 'cuda')
    cfg = gpu_config(launcher='pytorch')
    adapt_to_device(cfg)
    assert cfg.to_dict() == gpu_config(launcher='pytorch').to_dict()


def test_test_only_config_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    cfg = Config(dict(model=dict(norm_cfg=dict(type='SyncBN'))))
    adapt_to_device(cfg)
    assert cfg.model == ConfigDict(norm_cfg=dict(type='BN'))


def test_options_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, 'get_device', lambda: 'cuda')
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(lr=1))))
    enable_amp(cfg)
    amp = dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=dict(lr=1))
    assert cfg.optim_wrapper == amp
    with pytest.raises(ValueError, match=r'needs auto_scale_lr\.base_batch_size in the config'):
        enable_auto_scale_lr(cfg)
    cfg.auto_scale_lr = dict(base_batch_size=16, enable=False)
    enable_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr.enable is True


@pytest.mark.parametrize('has_units', [True, False])
def test_mixed_precision_on_a_cpu(
    has_units: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(launch, 'has_bfloat16_units', lambda: has_units)
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(lr=1))))
    enable_amp(cfg)
    assert cfg.train_dtype == 'bfloat16'
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert ('slower than float32' in capsys.readouterr().out) is not has_units


def test_loaders_without_workers(capsys: pytest.CaptureFixture) -> None:
    cfg = Config(
        dict(
            train_dataloader=dict(num_workers=0, persistent_workers=True, prefetch_factor=2),
            val_dataloader=dict(num_workers=0, persistent_workers=False),
            test_dataloader=None,
        )
    )
    launch.adapt_loaders(cfg)
    assert cfg.train_dataloader == dict(num_workers=0)
    assert capsys.readouterr().out.count('\n') == 1
    launch.adapt_loaders(cfg)
    assert capsys.readouterr().out == ''


def test_loaders_without_workers_say_so(capsys: pytest.CaptureFixture) -> None:
    cfg = Config(
        {f'{split}_dataloader': dict(persistent_workers=True) for split in ('train', 'val')}
    )
    launch.adapt_loaders(cfg)
    assert (
        'num_workers=0: without train_dataloader.persistent_workers, '
        'val_dataloader.persistent_workers.' in capsys.readouterr().out
    )


def test_loaders_with_workers_stay() -> None:
    loader = dict(num_workers=2, persistent_workers=True, prefetch_factor=4)
    cfg = Config(dict(train_dataloader=loader))
    launch.adapt_loaders(cfg)
    assert cfg.train_dataloader == loader


def test_types_that_are_not_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path('c.py').write_text("model = dict(type='Nothing')\nwork_dir = 'run'")
    cfg = Config.fromfile('c.py')
    message = '^c.py: Nothing is not in the mmengine::model registry; is it spelt so, and its pack'
    with pytest.raises(RunError, match=message):
        build_runner(cfg)
