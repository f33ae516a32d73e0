"""tools/benchmarks/bench_export.py on a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_data
import torch
from benchmarking import exported
from tiny_data import DETECTION, quick  # noqa: F401

pytestmark = pytest.mark.usefixtures('quick')


@pytest.mark.needs_torch('2.8', 'ONNX files')
def test_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_export

    monkeypatch.setattr('benchmarking.timing.BLOCK_SECONDS', 0.0)
    monkeypatch.setattr(exported, '_peak_of_first', lambda threads, make, *inputs: 1000 * threads)
    config = tiny_data.write_config(tmp_path / 'tiny.py', DETECTION, tmp_path)
    out = tmp_path / 'out.json'
    bench_export.main([config, '--size', '64x64', '--rounds', '2', '--out', str(out)])
    results = json.loads(out.read_text())
    (record,) = results['results']
    assert results['threads'] == 1
    assert record['size'] == [64, 64]
    assert record['nodes'] == sum(record['node_types'].values()) > record['node_types']['Conv'] > 0
    assert record['file_bytes'] > 1000
    assert record['export_cpu_seconds'] > 0
    for way in ('pytorch', 'onnxruntime'):
        assert len(record[way]['samples']) == 2
        assert record[way]['peak_bytes'] == 1000
    assert '| onnxruntime |' in capsys.readouterr().out


def allocate(number: int) -> Callable[[], object]:
    return lambda: torch.ones(number)


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='Linux has this')
def test_memory_of_a_first_pass() -> None:
    peak = exported._peak_of_first(1, allocate, 32 * 2**20)
    assert peak is not None
    assert 0.9 * 2**27 < peak < 1.5 * 2**27
