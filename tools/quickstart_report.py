"""Report on a quickstart run: draw its training curves, put pictures on a sheet, print its scores.

Reads what MMEngine's Runner leaves behind::

    WORK_DIR/<time stamp>/vis_data/scalars.json   one folder per start of tools/train.py
    WORK_DIR/test/<time stamp>/<time stamp>.json  metrics of tools/test.py
    WORK_DIR/pictures/                            ground truth beside prediction, one file per image

and writes ``WORK_DIR/curves.png`` and ``WORK_DIR/pictures.png``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np

from mmlocalattn.training import History, read_history

matplotlib.use('Agg')
from matplotlib import pyplot as plt

# What a task is scored by: row and column of the table -> name in MMEngine's log.
SCORES = {
    'detection': {
        'box': {'AP': 'coco/bbox_mAP', 'AP50': 'coco/bbox_mAP_50', 'AP75': 'coco/bbox_mAP_75'},
        'mask': {'AP': 'coco/segm_mAP', 'AP50': 'coco/segm_mAP_50', 'AP75': 'coco/segm_mAP_75'},
    },
    'segmentation': {'percent': {'mIoU': 'mIoU', 'mAcc': 'mAcc', 'aAcc': 'aAcc'}},
}
PICTURE_SUFFIXES = ('.jpg', '.png')
SHEET_ROWS, SHEET_COLUMNS, SHEET_CELL_WIDTH = 4, 3, 480


def read_metrics(work_dir: Path) -> dict[str, float]:
    """Read the metrics of the newest test.

    Raises:
        FileNotFoundError: If nothing has been tested.
    """
    results = sorted((work_dir / 'test').glob('*/*.json'))
    if not results:
        raise FileNotFoundError(f'no test result in {work_dir}/test/*/*.json')
    return json.loads(results[-1].read_text())


def task_of(metrics: dict[str, float]) -> str:
    """Say which task the metrics belong to.

    Raises:
        KeyError: If they belong to neither.
    """
    for task, rows in SCORES.items():
        if all(name in metrics for columns in rows.values() for name in columns.values()):
            return task
    raise KeyError(f'neither detection nor segmentation metrics, got {sorted(metrics)}')


def score_table(metrics: dict[str, float]) -> str:
    """Lay out the scores of a test as text, one line per row of ``SCORES``."""
    rows = SCORES[task_of(metrics)]
    lines = [' ' * 8 + ''.join(f'{column:>8}' for column in next(iter(rows.values())))]
    for row, columns in rows.items():
        lines.append(f'{row:8}' + ''.join(f'{metrics[name]:8.3f}' for name in columns.values()))
    return '\n'.join(lines)


def draw_curves(history: History, task: str, path: Path) -> None:
    """Plot the losses and the validation scores over the iterations."""
    figure, (losses, scores) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for name in history.values():
        if 'loss' in name:
            losses.plot(*history.curve(name), label=name, linewidth=2 if name == 'loss' else 1)
    losses.set(title='training', xlabel='iteration', ylabel='loss', yscale='log')
    losses.legend(fontsize='small')
    for row, columns in SCORES[task].items():
        column, name = next(iter(columns.items()))
        scores.plot(*history.curve(name), marker='o', label=f'{row} {column}')
    scores.set(title='validation', xlabel='iteration', ylim=(0, None))
    scores.legend(fontsize='small')
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_sheet(pictures: Sequence[Path], path: Path) -> None:
    """Put the first pictures on one sheet, all at the same width."""
    cells = []
    for picture in pictures[: SHEET_ROWS * SHEET_COLUMNS]:
        image = cv2.imread(str(picture))
        height = round(image.shape[0] * SHEET_CELL_WIDTH / image.shape[1])
        cell = cv2.resize(image, (SHEET_CELL_WIDTH, height), interpolation=cv2.INTER_CUBIC)
        cells.append(cv2.copyMakeBorder(cell, 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255,) * 3))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % SHEET_COLUMNS)
    starts = range(0, len(cells), SHEET_COLUMNS)
    rows = [np.hstack(cells[start : start + SHEET_COLUMNS]) for start in starts]
    if not cv2.imwrite(str(path), np.vstack(rows)):
        raise OSError(f'cannot write {path}')


def find_pictures(work_dir: Path) -> list[Path]:
    """List the pictures that the test drew, by name.

    Raises:
        FileNotFoundError: If there are none.
    """
    folder = work_dir / 'pictures'
    pictures = sorted(path for path in folder.rglob('*') if path.suffix in PICTURE_SUFFIXES)
    if not pictures:
        raise FileNotFoundError(f'no picture in {folder}')
    return pictures


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('work_dir', type=Path, help='the work_dir of the run')
    work_dir = parser.parse_args(argv).work_dir
    history = read_history(work_dir)
    metrics = read_metrics(work_dir)
    pictures = find_pictures(work_dir)
    draw_curves(history, task_of(metrics), work_dir / 'curves.png')
    draw_sheet(pictures, work_dir / 'pictures.png')
    print(f'\n{score_table(metrics)}\n')
    print(f'{max(history.train)} iterations in {history.minutes():.1f} minutes of training')
    print(f'training curves  {work_dir}/curves.png')
    print(f'pictures         {work_dir}/pictures.png (ground truth left, prediction right)')
    print(f'every picture    {pictures[0].parent}/ ({len(pictures)} files)')


if __name__ == '__main__':
    main()
