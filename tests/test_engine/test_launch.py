"""Reading configs, and running those written for GPUs without one."""

import argparse
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict

from mmlocalattn.engine import adapt_to_device, add_common_arguments, launch, load_config


def test_own_base_by_package_name(tmp_path: Path) -> None:
    file = tmp_path / 'c.py'
    file.write_text(
        "_base_ = 'mmlocalattn::semfpn_ssvit_s_80k_ade20k.py'\n"
        "model = dict(backbone=dict(arch='base'))\n"
    )
    cfg = load_config(str(file), {'train_dataloader.batch_size': 7})
    assert cfg.model.backbone.arch == 'base'
    assert cfg.model.backbone.drop_path_rate == 0.15
    assert cfg.train_dataloader.batch_size == 7


def test_installed_configs_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / 'mmlocalattn'
    (package / '.mim' / 'configs').mkdir(parents=True)
    monkeypatch.setattr(launch, '__file__', str(package / 'engine' / 'launch.py'))
    found = launch._find_own_config('mmlocalattn::a.py', 'c.py')
    assert found == (str(package / '.mim' / 'configs' / 'a.py'), None)


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


@pytest.mark.parametrize('spelling', ['--local_rank', '--local-rank'])
def test_arguments(spelling: str) -> None:
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    argv = ['c.py', '--cfg-options', 'a=1', 'b.c=[1,2]', spelling, '3', '--launcher', 'mpi']
    args = parser.parse_args(argv)
    assert args.cfg_options == {'a': 1, 'b.c': [1, 2]}
    assert args.local_rank == 3
    assert args.launcher == 'mpi'
    assert args.work_dir is None
