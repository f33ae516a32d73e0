"""Configs written for GPUs run without one."""

import pytest
import torch
from mmengine.config import Config, ConfigDict

from mmlocalattn.training import adapt_to_device, launch


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
    assert 'training in float32' in capsys.readouterr().out


def test_several_processes_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = []
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(torch.distributed, 'init_process_group', backends.append)
    cfg = gpu_config(launcher='pytorch', find_unused_parameters=True)
    adapt_to_device(cfg)
    assert backends == ['gloo']
    assert cfg.model_wrapper_cfg.device_ids is None
    assert cfg.model_wrapper_cfg.find_unused_parameters is True


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
