"""The report on a run that MMEngine's Runner left, and the command that prints it."""

import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_data
from run_log import write_log

from mmlocalattn.training import History, read_history
from mmlocalattn.visualisation import report
from mmlocalattn.visualisation.curves import draw_curves

TOOL = tiny_data.load_tool('analysis/quickstart_report')
DETECTION_METRICS = {
    f'coco/{kind}_mAP{suffix}': value
    for kind, value in (('bbox', 0.5), ('segm', 0.25))
    for suffix in ('', '_50', '_75')
}
SEGMENTATION_METRICS = {'mIoU': 61.5, 'mAcc': 70.25, 'aAcc': 95.0}


def write_run(work_dir: Path, metrics: dict[str, float]) -> None:
    write_log(work_dir / '20260101_000000', range(10, 60, 10), metrics)
    write_log(work_dir / '20260101_000100', range(40, 110, 10), metrics)
    result = work_dir / 'test' / '20260101_000200' / '20260101_000200.json'
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps(metrics))
    pictures = work_dir / 'pictures' / 'inner'
    pictures.mkdir(parents=True)
    for index in range(2):
        cv2.imwrite(str(pictures / f'{index}.png'), np.full((20, 40, 3), 100 * index, np.uint8))


@pytest.mark.parametrize(
    ('metrics', 'rows'),
    [
        (
            DETECTION_METRICS,
            ['AP AP50 AP75', 'box 0.500 0.500 0.500', 'mask 0.250 0.250 0.250'],
        ),
        (SEGMENTATION_METRICS, ['mIoU mAcc aAcc', 'percent 61.500 70.250 95.000']),
        (
            {**SEGMENTATION_METRICS, 'mIoU_low': 60.0, 'mIoU_high': 63.0},
            ['mIoU mAcc aAcc 95 % of mIoU', 'percent 61.500 70.250 95.000 60.000 to 63.000'],
        ),
        (
            {name: value for name, value in DETECTION_METRICS.items() if 'bbox' in name},
            ['AP AP50 AP75', 'box 0.500 0.500 0.500'],
        ),
    ],
)
def test_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metrics: dict[str, float], rows: list[str]
) -> None:
    write_run(tmp_path, metrics)
    TOOL.main([str(tmp_path)])
    out = capsys.readouterr().out
    heading, _, *scores = [line for line in out.splitlines() if line.startswith('|')]
    assert [' '.join(line.replace('|', ' ').split()) for line in (heading, *scores)] == rows
    assert '100 iterations in 1.0 minutes of training' in out
    assert f'{tmp_path}/pictures/inner/ (2 files)' in out
    assert cv2.imread(str(tmp_path / 'curves.png')).std() > 10
    cell = report.SHEET_CELL_WIDTH
    height, width = cv2.imread(str(tmp_path / 'pictures.png')).shape[:2]
    assert width == report.SHEET_COLUMNS * (cell + 8)
    assert height == cell // 2 + 8


def test_plots_are_losses_and_scores(tmp_path: Path) -> None:
    write_run(tmp_path, DETECTION_METRICS)
    losses, scores = report.plots_of(read_history(tmp_path), DETECTION_METRICS)
    assert [line.label for line in losses.lines] == ['loss', 'loss_cls']
    assert [line.label for line in scores.lines] == ['box AP', 'mask AP']


def test_the_largest_of_many_losses_are_drawn(tmp_path: Path) -> None:
    """A DINO logs forty; their legend would leave no room for the lines."""
    row = {f'd{i}.loss_{kind}': i + 1.0 for i in range(13) for kind in ('cls', 'bbox', 'iou')}
    history = History({i: {**row, 'loss': 99.0} for i in (1, 2)}, {2: DETECTION_METRICS})
    plots = report.plots_of(history, DETECTION_METRICS)
    drawn = [line.label for line in plots[0].lines]
    assert drawn[0] == 'd10.loss_cls'
    assert drawn[-1] == 'loss'
    assert len(drawn) == report.LOSSES
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        draw_curves(plots, tmp_path / 'curves.png')


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='no test result'):
        report.read_metrics(tmp_path)
    with pytest.raises(FileNotFoundError, match='no picture'):
        report.find_pictures(tmp_path)
    with pytest.raises(ValueError, match='no metrics of detection, segmentation or'):
        report.task_of({'accuracy': 0.5})
    with pytest.raises(SystemExit, match='error: no training log in'):
        TOOL.main([str(tmp_path)])


def test_sheet_of_pictures_of_several_sizes(tmp_path: Path) -> None:
    pictures = []
    for index, height in enumerate((20, 40, 10, 20)):
        pictures.append(tmp_path / f'{index}.png')
        cv2.imwrite(str(pictures[-1]), np.zeros((height, 40, 3), np.uint8))
    report.draw_sheet(pictures, tmp_path / 'sheet.png')
    sheet = cv2.imread(str(tmp_path / 'sheet.png'))
    cell = report.SHEET_CELL_WIDTH
    assert sheet.shape == (cell + 8 + cell // 2 + 8, 3 * (cell + 8), 3)
    assert (sheet[cell // 2 + 8 : cell, :cell] == 255).all()
