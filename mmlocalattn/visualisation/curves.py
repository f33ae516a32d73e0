"""Curves of training runs, and what they come to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from mmlocalattn.files import whole_file
from mmlocalattn.training import History


class Line(NamedTuple):
    """A line of a plot.

    Attributes:
        label: Its name.
        points: Iterations, and the values at them.
        is_metric: Whether it was measured a few times, and not logged all along.
    """

    label: str
    points: tuple[Sequence[int], Sequence[float]]
    is_metric: bool = False


class Plot(NamedTuple):
    """A plot over the iterations.

    Attributes:
        ylabel: What is plotted.
        lines: That share its axes.
        yscale: As Matplotlib names it.
    """

    ylabel: str
    lines: Sequence[Line]
    yscale: str = 'linear'


def compare_runs(histories: Mapping[str, History], keys: Sequence[str]) -> list[Plot]:
    """One plot for each key, with one line for each run that logged it.

    Args:
        histories: By name.
        keys: Logged values and metrics, such as ``'loss'`` and ``'coco/bbox_mAP'``.

    Raises:
        ValueError: If no run logged a key; lists what the first one logged.
    """
    plots = []
    for key in keys:
        logged = {
            name: history
            for name, history in histories.items()
            if key in (*history.values(), *history.metrics())
        }
        lines = [
            Line(name, history.curve(key), key in history.metrics())
            for name, history in (logged or histories).items()
        ]
        plots.append(Plot(key, lines))
    return plots


def draw_curves(plots: Sequence[Plot], path: Path) -> None:
    """Draw plots side by side.

    Args:
        plots: From left to right.
        path: Of the picture; its folder is made.
    """
    figure = Figure((5.5 * len(plots), 4), layout='constrained')
    (row,) = figure.subplots(1, len(plots), squeeze=False)
    for axes, plot in zip(row, plots):
        for line in plot.lines:
            axes.plot(*line.points, marker='o' if line.is_metric else None, label=line.label)
        axes.set(xlabel='iteration', ylabel=plot.ylabel, yscale=plot.yscale)
        axes.grid(alpha=0.3)
        axes.legend(fontsize='small')
    with whole_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:] or 'png', dpi=120)


def summarise_run(history: History) -> list[str]:
    """Length and speed of a run, and its metrics at the end and at their highest, line by line."""
    last = max(history.train)
    minutes = history.minutes()
    lines = [f'{last} iterations in {minutes:.1f} minutes, {60 * minutes / last:.3f} s each']
    lines.append(f'loss {history.train[last]["loss"]:.4g}')
    for name in history.metrics():
        iterations, values = history.curve(name)
        if max(values) == -1:  # COCO's score where there are no objects of a size
            continue
        highest = max(range(len(values)), key=values.__getitem__)
        lines.append(
            f'{name} {values[-1]:.4g}, highest {values[highest]:.4g} '
            f'after {iterations[highest]} iterations'
        )
    return lines
