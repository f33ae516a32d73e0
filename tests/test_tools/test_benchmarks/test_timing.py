"""tools/benchmarks/benchmarking/timing.py: turns, peak memory, files."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarking import timing

CPU = torch.device('cpu')
MIB = 2**20


def test_runs_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, 'BLOCK_SECONDS', 0.0)
    calls = []
    runs = [lambda: calls.append('a'), lambda: calls.append('b')]
    samples = timing.time_in_turns(runs, CPU, 3)
    assert ''.join(calls) == 'aabb' + 'ab' * 3  # warm-up and estimate, then rounds
    assert [len(times) for times in samples] == [3, 3]


def test_short_runs_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100, 2))  # every measurement lasts 2 seconds
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: next(clock))
    monkeypatch.setattr(timing, 'BLOCK_SECONDS', 7.0)
    calls = []
    assert timing.time_in_turns([lambda: calls.append(1)], CPU, 2) == [[0.5, 0.5]]
    assert len(calls) == 2 + 2 * 4


def test_slow_runs_are_timed_once() -> None:
    calls = []
    (samples,) = timing.time_in_turns([lambda: calls.append(1)], CPU, 5, slow=0.0)
    assert len(samples) == 1
    assert len(calls) == 2


PEAKS = """
import torch
from benchmarking import timing

CPU, MIB = torch.device('cpu'), 2**20
held = torch.ones(16 * MIB)


def run():
    torch.ones(24 * MIB)  # 96 MiB, freed at once
    return held.sqrt()  # 64 MiB


for call in (run, run, lambda: None):
    print(timing.peak_memory(call, CPU) / MIB)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='Linux keeps the high-water mark')
def test_peak_memory() -> None:
    # In a process of its own: one that other tests ran in has memory for some of these blocks.
    command = [sys.executable, '-c', PEAKS]
    path = os.pathsep.join([str(Path(timing.__file__).parents[1]), *sys.path])
    environment = {**os.environ, 'PYTHONPATH': path}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    first, second, nothing = map(float, run.stdout.split())
    assert first == pytest.approx(96, abs=8)
    assert second == pytest.approx(96, abs=8)  # what the first call has freed does not hide it
    assert nothing < 4


def test_environment_says_what_matters() -> None:
    setting = timing.environment(CPU)
    assert setting['versions']['torch'] == torch.__version__
    assert setting['threads'] == torch.get_num_threads()
    json.dumps(setting)


def test_results_name_their_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'new' / 'out.json'
    args = argparse.Namespace(out=out, device=CPU)
    timing.write_results(args, {'threads': 2}, [{'seconds': 0.5}])
    assert json.loads(out.read_text()) == {
        'threads': 2,
        'arguments': {'out': str(out), 'device': 'cpu'},
        'results': [{'seconds': 0.5}],
    }
    assert capsys.readouterr().out == f'{out}\n'
    timing.write_results(argparse.Namespace(out=None), {}, [])
    assert capsys.readouterr().out == ''
