"""tools/dev/kill_runs.py: what it draws, and a training that is killed and resumed."""

import json
import re
import signal
from collections import Counter
from pathlib import Path

import kill_runs
import pytest
from killing import downloads, moments


def test_moments_are_in_all_parts() -> None:
    calls = Counter({'checkpoint': 5, 'validation': 70})
    drawn = moments.draw(calls, 10, seed=0)
    assert drawn == moments.draw(calls, 10, seed=0) != moments.draw(calls, 10, seed=1)
    assert [moment.signal for moment in drawn] == ['SIGKILL'] * 10 + ['SIGTERM', 'SIGINT']
    assert {moment.part for moment in drawn} == set(calls)
    assert all(1 <= moment.call <= calls[moment.part] for moment in drawn)


def test_a_killed_download_goes_on(tmp_path: Path) -> None:
    calls = downloads.count_calls(tmp_path)
    moment = moments.Moment('download', calls['download'] // 2, delay=0)
    record = downloads.kill(tmp_path, 'a', moment)
    assert record['status'] == -signal.SIGKILL
    assert record['went_on']
    assert kill_runs.is_right({**record, 'signal': 'SIGKILL'})


def test_resumed_trainings_are_the_uninterrupted_one(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A kill, a SIGTERM and a SIGINT; what is done is not done again."""
    out = tmp_path / 'kills.json'
    with pytest.raises(SystemExit, match='0'):
        kill_runs.main(['1', '--seed', '7', '--out', str(out)])
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r'seed 7: 1 SIGKILL, 1 SIGTERM, 1 SIGINT; .*; 0 of 3 wrong', last)
    records = json.loads(out.read_text())['kills']
    assert all(kill_runs.is_right(record) for record in records)
    assert not kill_runs.is_right({**records[0], 'differing': ['backbone.stem.weight']})
    assert not kill_runs.is_right({**records[1], 'seconds': 6.0})
