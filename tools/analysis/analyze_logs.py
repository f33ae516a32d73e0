"""Sum up training runs and draw their curves beside each other.

    python tools/analysis/analyze_logs.py work_dirs/RUN [...] [--keys loss coco/bbox_mAP]

A run is its work dir, with all of its starts, or one scalars.json. Nothing needs to be known of the
task; the scripts of the same name in mmdet and mmsegmentation need seaborn, and read one start.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

from mmlocalattn.training import History, read_history

matplotlib.use('Agg')
from matplotlib import pyplot as plt


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('runs', nargs='+', type=Path, help='work dirs, or scalars.json files')
    parser.add_argument(
        '--keys',
        nargs='+',
        help="to draw; default the loss and the first metric of the first run's validation",
    )
    parser.add_argument('--out', type=Path, default=Path('curves.png'), help='picture to write')
    return parser.parse_args(argv)


def summary(history: History) -> list[str]:
    """Length and speed of a run, and its metrics at the end and at their highest."""
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


def draw(histories: Mapping[str, History], keys: Sequence[str], path: Path) -> None:
    """Draw one plot for each key, with one line for each run that logged it.

    Raises:
        KeyError: If no run did; lists what the first one logged.
    """
    figure, plots = plt.subplots(
        1, len(keys), figsize=(5.5 * len(keys), 4), squeeze=False, constrained_layout=True
    )
    for axes, key in zip(plots[0], keys):
        logged = {
            name: history
            for name, history in histories.items()
            if key in (*history.values(), *history.metrics())
        }
        for name, history in (logged or histories).items():
            marker = 'o' if key in history.metrics() else None
            axes.plot(*history.curve(key), marker=marker, label=name)
        axes.set(xlabel='iteration', ylabel=key)
        axes.grid(alpha=0.3)
        axes.legend(fontsize='small')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        histories = {str(run): read_history(run) for run in args.runs}
        for name, history in histories.items():
            print(name, *summary(history), sep='\n  ')
        first = next(iter(histories.values()))
        draw(histories, args.keys or ['loss', *first.metrics()[:1]], args.out)
    except (FileNotFoundError, KeyError) as error:
        raise SystemExit(f'error: {error.args[0]}') from None
    print(args.out)


if __name__ == '__main__':
    main()
