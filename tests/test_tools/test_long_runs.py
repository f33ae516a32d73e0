"""tools/dev/long_runs.py: what it calls growth, and a run that is not long."""

import json
import math
from pathlib import Path

import long_runs
import pytest
from long_running import sampling
from tiny_data import quick  # noqa: F401

from mmlocalattn.visualisation import training_report


def test_growth_is_after_the_first_fifth() -> None:
    assert sampling.growth([1.0, 9.0, *[10.0] * 8]) == 0.0
    assert sampling.growth([20.0, 20.0, *[10.0] * 4, *[10.5] * 4]) == pytest.approx(0.05)


def test_leaks_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    record = dict(memory=[1.0], losses=[1.0], seconds=1.0)
    for growth, status in ((0.009, '0'), (0.011, '1'), (math.nan, '1')):
        monkeypatch.setattr(sampling, 'train', lambda *_, grown=growth: {**record, 'growth': grown})
        with pytest.raises(SystemExit, match=f'^{status}$'):
            long_runs.main(['100'])


@pytest.mark.usefixtures('quick')
def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match='2'):
        long_runs.main(['99'])
    monkeypatch.setattr(long_runs, 'ALLOWED', 1.0)
    report = training_report.register_report
    with pytest.raises(SystemExit, match='0'):
        long_runs.main(['100', '--amp', '--out', 'run.json'])
    assert training_report.register_report is report  # which is left out of long runs alone
    record = json.loads((tmp_path / 'run.json').read_text())
    assert record['options'] == ['--amp']
    assert len(record['memory']) == len(record['losses']) == sampling.SAMPLES
    assert all(map(math.isfinite, record['losses']))
    assert min(record['memory']) > 50
