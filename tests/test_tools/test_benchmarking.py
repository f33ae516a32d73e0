"""tools/benchmarking.py: turns, peak memory, tables, files."""

import json
import sys
from pathlib import Path

import pytest
import tiny_data
import torch

CPU = torch.device('cpu')
MIB = 2**20


@pytest.fixture
def benchmarking(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tiny_data.ROOT / 'tools'))
    import benchmarking

    return benchmarking


def test_runs_take_turns(benchmarking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarking, 'BLOCK_SECONDS', 0.0)
    calls = []
    runs = [lambda: calls.append('a'), lambda: calls.append('b')]
    samples = benchmarking.time_in_turns(runs, CPU, 3)
    assert ''.join(calls) == 'aabb' + 'ab' * 3  # warm-up and estimate, then rounds
    assert [len(times) for times in samples] == [3, 3]


def test_short_runs_are_repeated(benchmarking, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100, 2))  # every measurement lasts 2 seconds
    monkeypatch.setattr(benchmarking.time, 'perf_counter', lambda: next(clock))
    monkeypatch.setattr(benchmarking, 'BLOCK_SECONDS', 7.0)
    calls = []
    assert benchmarking.time_in_turns([lambda: calls.append(1)], CPU, 2) == [[0.5, 0.5]]
    assert len(calls) == 2 + 2 * 4


def test_slow_runs_are_timed_once(benchmarking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarking, 'SLOW_SECONDS', 0.0)
    calls = []
    (samples,) = benchmarking.time_in_turns([lambda: calls.append(1)], CPU, 5)
    assert len(samples) == 1
    assert len(calls) == 2


@pytest.mark.skipif(sys.platform != 'linux', reason='Linux keeps the high-water mark')
def test_peak_memory(benchmarking) -> None:
    held = torch.ones(16 * MIB)

    def run() -> torch.Tensor:
        torch.ones(24 * MIB)  # 96 MiB, freed at once
        return held.sqrt()  # 64 MiB

    for _ in range(2):  # what a first call has freed does not hide a second one
        assert benchmarking.peak_memory(run, CPU) / MIB == pytest.approx(96, abs=8)
    assert benchmarking.peak_memory(lambda: None, CPU) < 4 * MIB


def test_table_is_markdown(benchmarking, capsys: pytest.CaptureFixture[str]) -> None:
    benchmarking.print_table(('map', 'ms'), [('100 x 167', '1'), ('5 x 8', '20.5')])
    assert capsys.readouterr().out == (
        '| map       |   ms |\n| --------- | ---: |\n| 100 x 167 |    1 |\n| 5 x 8     | 20.5 |\n'
    )


def test_file_is_whole_or_not_there(benchmarking, tmp_path: Path) -> None:
    path = tmp_path / 'out.json'
    with pytest.raises(TypeError):
        benchmarking.write_json(path, {'object': object()})
    assert list(tmp_path.iterdir()) == []
    benchmarking.write_json(path, {'a': 1})
    assert json.loads(path.read_text()) == {'a': 1}
    assert list(tmp_path.iterdir()) == [path]


def test_environment_says_what_matters(benchmarking) -> None:
    setting = benchmarking.environment(CPU)
    assert setting['versions']['torch'] == torch.__version__
    assert setting['threads'] == torch.get_num_threads()
    json.dumps(setting)
