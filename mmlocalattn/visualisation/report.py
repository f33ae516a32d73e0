"""A report on a run that was trained and tested: its curves, its scores, a sheet of its pictures.

Read is what MMEngine's Runner leaves behind::

    WORK_DIR/<time stamp>/vis_data/scalars.json   one folder per start of tools/train.py
    WORK_DIR/test/<time stamp>/<time stamp>.json  metrics of tools/test.py
    WORK_DIR/pictures/                            ground truth beside prediction, one file per image
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mmlocalattn.data.images import read_image, write_image
from mmlocalattn.tables import markdown_table
from mmlocalattn.training import History, read_history
from mmlocalattn.visualisation.curves import Line, Plot, draw_curves

SCORES = {
    'detection': {
        'box': {'AP': 'coco/bbox_mAP', 'AP50': 'coco/bbox_mAP_50', 'AP75': 'coco/bbox_mAP_75'},
        'mask': {'AP': 'coco/segm_mAP', 'AP50': 'coco/segm_mAP_50', 'AP75': 'coco/segm_mAP_75'},
    },
    'segmentation': {'percent': {'mIoU': 'mIoU', 'mAcc': 'mAcc', 'aAcc': 'aAcc'}},
    'classification': {'percent': {'top-1': 'accuracy/top1'}},
}
"""What a task is scored by: row and column of the table -> name in MMEngine's log."""
LOSSES = 8  # lines of a plot, so that its legend leaves room for them
SHEET_ROWS, SHEET_COLUMNS, SHEET_CELL_WIDTH, SHEET_BORDER = 4, 3, 480, 4  # the last two in pixels


def write_report(work_dir: Path) -> list[str]:
    """Draw the curves and the sheet of a run, as ``curves.png`` and ``pictures.png``.

    Args:
        work_dir: Of the run.

    Returns:
        Lines to print: the scores, the length of the training, what was drawn.

    Raises:
        FileNotFoundError: If the run has no log, no test result or no pictures.
        ValueError: If it is of no task that is known.
    """
    history = read_history(work_dir)
    metrics = read_metrics(work_dir)
    pictures = find_pictures(work_dir)
    draw_curves(plots_of(history, metrics), work_dir / 'curves.png')
    draw_sheet(pictures, work_dir / 'pictures.png')
    return [
        *('', score_table(metrics), ''),
        f'{max(history.train)} iterations in {history.minutes():.1f} minutes of training',
        f'training curves  {work_dir}/curves.png',
        f'pictures         {work_dir}/pictures.png (ground truth left, prediction right)',
        f'every picture    {pictures[0].parent}/ ({len(pictures)} files)',
    ]


def read_metrics(work_dir: Path) -> dict[str, float]:
    """Read the metrics of the newest test.

    Raises:
        FileNotFoundError: If nothing has been tested.
    """
    results = sorted((work_dir / 'test').glob('*/*.json'))
    if not results:
        raise FileNotFoundError(f'no test result in {work_dir}/test/*/*.json')
    return json.loads(results[-1].read_text())


def find_pictures(work_dir: Path) -> list[Path]:
    """List the pictures that the test drew, by name.

    Raises:
        FileNotFoundError: If there are none.
    """
    folder = work_dir / 'pictures'
    pictures = sorted(path for path in folder.rglob('*') if path.suffix in ('.jpg', '.png'))
    if not pictures:
        raise FileNotFoundError(f'no picture in {folder}')
    return pictures


def task_of(metrics: Mapping[str, float]) -> str:
    """Say which task the metrics belong to.

    Raises:
        ValueError: If they belong to none.
    """
    for task in SCORES:
        if _rows_of(metrics, task):
            return task
    raise ValueError(
        f'no metrics of detection, segmentation or classification, got {sorted(metrics)}'
    )


def _rows_of(metrics: Mapping[str, float], task: str) -> dict[str, dict[str, str]]:
    """The rows of a task's table that were measured: masks are not for boxes alone."""
    return {
        row: names
        for row, names in SCORES[task].items()
        if all(name in metrics for name in names.values())
    }


def score_table(metrics: Mapping[str, float]) -> str:
    """Lay out the scores of a test, one row for each of :data:`SCORES`.

    Where the first score of a row has a 95 % interval, that stands in the last column.

    Raises:
        ValueError: Of :func:`task_of`.
    """
    scores = _rows_of(metrics, task_of(metrics))
    columns = ['', *next(iter(scores.values()))]
    has_intervals = any(f'{name}_low' in metrics for name in metrics)
    rows = []
    for row, names in scores.items():
        first = next(iter(names.values()))
        rows.append([row, *(f'{metrics[name]:.3f}' for name in names.values())])
        if has_intervals:
            low, high = (metrics.get(f'{first}_{end}', float('nan')) for end in ('low', 'high'))
            rows[-1].append(f'{low:.3f} to {high:.3f}')
    return markdown_table([*columns, *([f'95 % of {columns[1]}'] * has_intervals)], rows)


def plots_of(history: History, metrics: Mapping[str, float]) -> list[Plot]:
    """The losses, and the first score of each row of the table, over the iterations.

    Of more losses than there is room for, as those of a DETR's layers, the largest are drawn.
    """
    names = [name for name in history.values() if 'loss' in name]
    drawn = sorted(names, key=lambda name: -history.curve(name)[1][-1])[:LOSSES]
    losses = [Line(name, history.curve(name)) for name in names if name in drawn]
    plots = [Plot('loss', losses, 'log')]
    if metrics:
        scores = []
        for row, columns in _rows_of(metrics, task_of(metrics)).items():
            column, name = next(iter(columns.items()))
            scores.append(Line(f'{row} {column}', history.curve(name), is_metric=True))
        plots.append(Plot('validation', scores))
    return plots


def draw_sheet(pictures: Sequence[Path], path: Path) -> None:
    """Put the first pictures on one sheet, all at the same width.

    Args:
        pictures: Image files; of more than twelve, the first ones are shown.
        path: Of the sheet.
    """
    cells: list[NDArray[np.uint8]] = []
    for picture in pictures[: SHEET_ROWS * SHEET_COLUMNS]:
        image = read_image(picture)
        height = round(image.shape[0] * SHEET_CELL_WIDTH / image.shape[1])
        size = (SHEET_CELL_WIDTH, height)
        cell = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)
        border = [(SHEET_BORDER, SHEET_BORDER)] * 2
        cells.append(np.pad(cell, [*border, (0, 0)], constant_values=255))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % SHEET_COLUMNS)
    starts = range(0, len(cells), SHEET_COLUMNS)
    rows = [_side_by_side(cells[start : start + SHEET_COLUMNS]) for start in starts]
    write_image(path, np.vstack(rows))


def _side_by_side(cells: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """A row of cells, white below those that are not as high as others."""
    height = max(len(cell) for cell in cells)
    padded = [
        np.pad(cell, [(0, height - len(cell)), (0, 0), (0, 0)], constant_values=255)
        for cell in cells
    ]
    return np.hstack(padded)
