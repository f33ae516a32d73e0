"""Old paths of tools print the new ones and hand their arguments on."""

import os
import runpy
import subprocess
import sys

import pytest
import tiny_data

TOOLS = tiny_data.ROOT / 'tools'


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ('benchmark_ops.py', 'benchmarks/bench_ops.py'),
        ('benchmark_model.py', 'benchmarks/bench_model.py'),
        ('benchmark_windows.py', 'benchmarks/bench_windows.py'),
        ('quickstart_report.py', 'analysis/quickstart_report.py'),
    ],
)
def test_old_paths(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = []
    monkeypatch.setattr(os, 'execv', lambda *command: started.append(command))
    monkeypatch.setattr(sys, 'argv', [old, '--rounds', '1'])
    runpy.run_path(str(TOOLS / old), run_name='__main__')
    command = [sys.executable, str(TOOLS / new), '--rounds', '1']
    assert started == [(sys.executable, command)]
    assert capsys.readouterr().err == f'{TOOLS / old} is tools/{new} now\n'
    assert (TOOLS / new).is_file()


def test_one_of_them_runs() -> None:
    command = [sys.executable, TOOLS / 'benchmark_ops.py', '--help']
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith('usage: bench_ops.py ')
    assert 'is tools/benchmarks/bench_ops.py now' in done.stderr
