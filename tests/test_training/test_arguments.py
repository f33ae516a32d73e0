"""The configs that command lines describe."""

import argparse
import os
from pathlib import Path

import pytest

from mmlocalattn.training import add_common_arguments, config_of, run_config_of


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    return parser


def test_config_of_a_run(
    parser: argparse.ArgumentParser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    file = tmp_path / 'c.py'
    file.write_text("default_scope = 'mmengine'")
    argv = [str(file), '--launcher', 'slurm', '--local-rank', '2']
    cfg = run_config_of(parser.parse_args(argv))
    assert (cfg.launcher, cfg.work_dir, os.environ['LOCAL_RANK']) == ('slurm', 'work_dirs/c', '2')
    file.write_text("default_scope = 'mmengine'\nwork_dir = 'there'")
    monkeypatch.setenv('LOCAL_RANK', '1')
    assert run_config_of(parser.parse_args(argv)).work_dir == 'there'
    assert run_config_of(parser.parse_args([*argv, '--work-dir', 'here'])).work_dir == 'here'
    assert os.environ['LOCAL_RANK'] == '1'


def test_options_are_read_as_mmengine_reads_them(
    parser: argparse.ArgumentParser, tmp_path: Path
) -> None:
    file = tmp_path / 'c.py'
    file.write_text("default_scope = 'mmengine'\na = dict(b=0, c='', d=0, e='', f=None)")
    argv = [str(file), '--cfg-options', 'a.b=1', 'a.c=[1,(2.5,x)]', 'a.d=true', '--cfg-options']
    cfg = config_of(parser.parse_args([*argv, 'a.e=x=y', 'a.f=None']))
    assert cfg.a.to_dict() == dict(b=1, c=[1, (2.5, 'x')], d=True, e='x=y', f=None)


@pytest.mark.parametrize('swap', [[], ['--backbone', 'ssvit_t']])
def test_a_missing_toolbox_comes_first(
    parser: argparse.ArgumentParser, tmp_path: Path, swap: list[str]
) -> None:
    """Not that the backbone cannot be replaced in a config without a model."""
    file = tmp_path / 'c.py'
    file.write_text("default_scope = 'mmnothing'")
    with pytest.raises(
        ModuleNotFoundError, match=r'^config .*c\.py. needs mmnothing, which is not'
    ):
        config_of(parser.parse_args([str(file), *swap]))
