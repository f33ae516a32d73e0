"""Configs are found and merged."""

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest
from mmengine.config import Config

from mmlocalattn.training import config, load_config


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
    spec = importlib.machinery.ModuleSpec('mmlocalattn', None, origin=str(package / '__init__.py'))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: spec)
    for configs in (tmp_path / 'configs', package / '.mim' / 'configs'):
        configs.mkdir(parents=True)
        (configs / 'a.py').write_text('')
        found = config._find_base('mmlocalattn::a.py', 'c.py')
        assert found == (str(configs / 'a.py'), None)


def test_mmengine_is_left_as_it_was(tmp_path: Path) -> None:
    before = Config.__dict__['_get_cfg_path']
    with pytest.raises(FileNotFoundError, match='does not exist'):
        load_config(str(tmp_path / 'c.py'))
    assert Config.__dict__['_get_cfg_path'] is before
