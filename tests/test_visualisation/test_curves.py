"""Curves of runs: who logged what, and the sums."""

from pathlib import Path

import cv2
import pytest

from mmlocalattn.training import History
from mmlocalattn.visualisation.curves import Line, Plot, compare_runs, draw_curves, summarise_run

TRAIN = {i: dict(loss=4 / i, lr=0.1, time=0.5) for i in (20, 40)}
RUNS = {
    'first': History(TRAIN, {20: dict(mIoU=30.0, mAcc=-1), 40: dict(mIoU=25.0, mAcc=-1)}),
    'second': History(TRAIN, {}),
}


def test_runs_that_did_not_log_a_key_are_left_out() -> None:
    loss, score = compare_runs(RUNS, ['loss', 'mIoU'])
    points = ([20, 40], [0.2, 0.1])
    assert loss == Plot('loss', [Line('first', points), Line('second', points)])
    assert score == Plot('mIoU', [Line('first', ([20, 40], [30.0, 25.0]), is_metric=True)])
    with pytest.raises(ValueError, match=r"^'mAP' was not logged; there are loss, lr, time, mIoU"):
        compare_runs(RUNS, ['mAP'])


def test_sums() -> None:
    assert summarise_run(RUNS['first']) == [
        '40 iterations in 0.3 minutes, 0.500 s each',
        'loss 0.1',
        'mIoU 25, highest 30 after 20 iterations',
    ]


def test_plots_stand_side_by_side(tmp_path: Path) -> None:
    widths = []
    for keys in (['lr'], ['lr', 'mIoU', 'loss']):
        path = tmp_path / 'new' / 'out.png'
        draw_curves(compare_runs(RUNS, keys), path)
        picture = cv2.imread(str(path))
        assert picture.std() > 10
        widths.append(picture.shape[1])
    assert widths[1] == 3 * widths[0]
