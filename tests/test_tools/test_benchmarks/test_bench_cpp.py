"""tools/benchmarks/bench_cpp.py, with a script in the place of the program."""

import json
from pathlib import Path

import bench_cpp
import pytest
import tiny_data
from benchmarking import cpp
from tiny_data import DETECTION, quick  # noqa: F401

pytestmark = pytest.mark.usefixtures('quick')
LINE = 'median of 3 runs 120.5 ms, best 100.0 ms, processor time 200.0 ms, peak memory 50 MiB'


def test_both_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, out = tmp_path / 'detect', tmp_path / 'out.json'
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/argv\necho "{LINE}"\n')
    program.chmod(0o755)
    monkeypatch.setattr(cpp, 'in_process', lambda function, *inputs: function(*inputs))
    monkeypatch.setattr(cpp, 'keep_freed_memory', lambda: True)
    monkeypatch.setattr(cpp, 'command_of', lambda program, threads: [str(program)])
    config = tiny_data.write_config(tmp_path / 'tiny.py', DETECTION, tmp_path)
    argv = [config, '--detect', str(program), '--size', '64x96', '--threads', '1']
    bench_cpp.main([*argv, '--rounds', '2', '--repeat', '1', '--out', str(out)])
    eager, native = json.loads(out.read_text())['results']
    assert (eager['name'], len(eager['rounds'])) == ('PyTorch', 2)
    assert 0 < eager['best'] <= eager['median']
    assert native['median'] == 120.5
    assert native['peak_mib'] == 50
    assert (tmp_path / 'argv').read_text().count('model.pt') == 2
    assert '| C++ ' in capsys.readouterr().out
    program.write_text('#!/bin/sh\necho "error: no" >&2\nexit 1\n')
    with pytest.raises(SystemExit, match=rf'^error: {program}: error: no$'):
        bench_cpp.main(argv)


def test_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='there is no such program; see docs/deploy'):
        cpp.command_of(tmp_path / 'detect', 1)
