"""tools/analysis/analyze_logs.py: sums and curves of training runs."""

import json
from pathlib import Path

import cv2
import pytest
import tiny_data

TOOL = tiny_data.load_tool('analysis/analyze_logs')


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs, one of them without validation."""
    rows = [dict(loss=4 / i, lr=0.1, time=0.5, iter=i, step=i) for i in (20, 40)]
    val = [dict(mIoU=value, mAcc=-1, step=i) for i, value in ((20, 30.0), (40, 25.0))]
    for name, lines in (
        ('first', [rows[0], val[0], rows[1], val[1]]),
        ('second', rows),
    ):
        folder = tmp_path / name / '20260101_000000' / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)) + '\n')
    return [tmp_path / 'first', tmp_path / 'second' / '20260101_000000/vis_data/scalars.json']


def test_sums_up(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'new' / 'curves.png'
    TOOL.main([*map(str, runs), '--out', str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        str(runs[0]),
        '  40 iterations in 0.3 minutes, 0.500 s each',
        '  loss 0.1',
        '  mIoU 25, highest 30 after 20 iterations',
        str(runs[1]),
        '  40 iterations in 0.3 minutes, 0.500 s each',
        '  loss 0.1',
        str(out),
    ]
    assert cv2.imread(str(out)).std() > 10


def test_one_line_errors(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"error: 'mAP' was not logged; there are loss, lr, time, mIoU"
    ):
        TOOL.main([str(runs[0]), '--keys', 'mAP', '--out', str(tmp_path / 'out.png')])
    with pytest.raises(SystemExit, match=r'error: no training log in .*/none/\*/vis_data'):
        TOOL.main([str(tmp_path / 'none')])
