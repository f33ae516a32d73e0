"""What a training leaves to look at: its scores with their intervals, curves and pictures."""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmlocalattn.training import read_history
from mmlocalattn.visualisation.curves import draw_curves
from mmlocalattn.visualisation.pictures_hook import PicturesHook
from mmlocalattn.visualisation.report import (
    SHEET_COLUMNS,
    SHEET_ROWS,
    draw_sheet,
    find_pictures,
    plots_of,
    score_table,
)

NOTHING = 'The model has found nothing at all, which is an AP of 0: train it longer.'


class ReportHook(Hook):
    """Reports when the training is over: its scores, curves, pictures, and what to do next."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._metrics: dict[str, float] | None = None

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Remember the last scores."""
        self._metrics = metrics or {}

    def after_train(self, runner: Runner) -> None:
        """Print the report, if there was a validation."""
        if runner.rank != 0 or self._metrics is None:
            return
        try:
            print(*report_training(runner, self._metrics), sep='\n')
        except (OSError, ValueError) as error:  # after a training, nothing of it may be lost
            print_log(f'No report: {error}', logger='current')


def register_report(runner: Runner) -> None:
    """Let a training draw its first validation images, and report at its end."""
    folder = str(Path(runner.work_dir) / 'pictures')
    runner.register_hook(PicturesHook(folder, SHEET_ROWS * SHEET_COLUMNS))
    runner.register_hook(ReportHook())


def report_training(runner: Runner, metrics: Mapping[str, float]) -> list[str]:
    """Draw the curves and pictures of a training that is over.

    Args:
        runner: Of the training.
        metrics: Of its last validation; none if nothing was found, of which mmdet makes no AP.

    Returns:
        Lines to print: the scores, what was drawn, and what to do next.

    Raises:
        FileNotFoundError: If nothing was drawn.
        ValueError: If nothing was measured that is known.
    """
    folder = Path(runner.work_dir)
    number = len(runner.val_dataloader.dataset)
    scores = score_table(metrics) if metrics else NOTHING
    lines = ['', scores, '', f'on {number} images, after {runner.iter} iterations']
    if any(name.endswith('_low') for name in metrics):
        lines[-1] += '; of 100 draws of as many images 95 score in the interval'
    pictures = find_pictures(folder)
    draw_sheet(pictures, folder / 'pictures.png')
    lines.append(f'pictures  {folder}/pictures.png (ground truth left, prediction right)')
    try:
        draw_curves(plots_of(read_history(folder), metrics), folder / 'curves.png')
        lines.append(f'curves    {folder}/curves.png')
    except FileNotFoundError:
        lines.append('curves    none: fewer iterations than are logged at once')
    return [*lines, '', *next_commands(runner)]


def next_commands(runner: Runner) -> list[str]:
    """Commands that test, show and export what was trained."""
    folder = Path(runner.work_dir)
    config = quote(str(folder / Path(runner.cfg.filename or 'config.py').name))
    checkpoint = quote(str(folder / f'iter_{runner.iter}.pth'))
    recorded = folder / 'last_checkpoint'
    if recorded.is_file():
        checkpoint = quote(recorded.read_text().strip())
    image = quote(str(runner.val_dataloader.dataset[0]['data_samples'].img_path))
    return [
        f'test    python tools/test.py {config} {checkpoint}',
        f'show    python tools/image_demo.py {config} {checkpoint} {image}',
        f'export  python tools/export.py {config} {checkpoint} --format onnx',
    ]
