"""Reading the logs of MMEngine's Runner."""

from pathlib import Path

import pytest
from run_log import write_log

from mmlocalattn.training import read_history


def test_resumed_iterations_count_once(tmp_path: Path) -> None:
    """Iterations 40 and 50 ran twice; the second start's values stand."""
    write_log(tmp_path / '20260101_000000', range(10, 60, 10), {'mIoU': 1.0})
    write_log(tmp_path / '20260101_000100', range(40, 110, 10), {'mIoU': 2.0})
    history = read_history(tmp_path)
    assert sorted(history.train) == list(range(10, 110, 10))
    assert history.curve('mIoU') == ([50, 100], [1.0, 2.0])
    assert history.minutes() == pytest.approx(1.0)


def test_what_was_logged(tmp_path: Path) -> None:
    history = read_history(write_log(tmp_path, range(1, 3), {'mIoU': 1.0}))
    assert history.metrics() == ['mIoU']
    assert history.values() == ['loss', 'loss_cls', 'time']
    assert history.curve('loss') == ([1, 2], [1.0, 0.5])
    assert history.curve('time') == ([1, 2], [0.6, 0.6])
    with pytest.raises(
        ValueError, match="'mAP' was not logged; there are loss, loss_cls, time, mIoU"
    ):
        history.curve('mAP')


def test_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'no training log in .*/vis_data/scalars.json'):
        read_history(tmp_path)


def test_logs_that_are_cut_off_or_none(tmp_path: Path) -> None:
    log = write_log(tmp_path, range(1, 3), {'mIoU': 1.0})
    with log.open('a') as file:
        file.write('{"loss": 0.')
    assert sorted(read_history(log).train) == [1, 2]
    log.write_text('hello\n')
    with pytest.raises(ValueError, match=r'scalars\.json, line 1 is not JSON: '):
        read_history(log)


@pytest.mark.parametrize('line', ['[1, 2]', '{"loss": 0.5}'])
def test_json_of_another_kind(tmp_path: Path, line: str) -> None:
    log = write_log(tmp_path, range(1, 3), {'mIoU': 1.0})
    log.write_text(f'{log.read_text()}{line}\n')
    with pytest.raises(ValueError, match=r'scalars\.json, line 4 is no line of a log of MMEngine$'):
        read_history(log)
