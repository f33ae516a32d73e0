"""The command lines that the tools share."""

import argparse
import os
from pathlib import Path

import pytest

from mmlocalattn.training import (
    add_common_arguments,
    image_size,
    one_line_errors,
    run_config_of,
)


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


def test_config_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
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


def test_image_size() -> None:
    assert image_size('800x1344') == (800, 1344)


@pytest.mark.parametrize('text', ['800', '800x', '0x4', '-1x4', '8x8x8', 'axb'])
def test_not_an_image_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not HEIGHTxWIDTH"):
        image_size(text)


def test_errors_are_one_line() -> None:
    with pytest.raises(SystemExit, match=r'^error: no such file$'), one_line_errors():
        raise FileNotFoundError('no such file')
    with (
        pytest.raises(SystemExit, match=r'^error: denied\nWritten\.$'),
        one_line_errors('Written.'),
    ):
        raise PermissionError('denied')
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError
