"""What MMEngine's Runner logged of a training run, over all of its starts."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class History:
    """A training run.

    Attributes:
        train: Logged values by number of iterations done.
        val: Metrics by number of iterations done.
    """

    train: dict[int, dict[str, float]]
    val: dict[int, dict[str, float]]

    def minutes(self) -> float:
        """Sum up the time of the iterations, interruptions and validation left out."""
        seconds, previous = 0.0, 0
        for iteration, row in sorted(self.train.items()):
            seconds += row['time'] * (iteration - previous)
            previous = iteration
        return seconds / 60

    def metrics(self) -> list[str]:
        """What validation measured."""
        return _names(self.val, ('step', 'time', 'data_time'))

    def values(self) -> list[str]:
        """What training logged: losses, learning rate, times, ..."""
        return _names(self.train, ('step', 'iter', 'epoch'))

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """The iterations at which a value or metric was logged, and what it was.

        Raises:
            ValueError: If it never was; lists what was.
        """
        rows = self.val if name in self.metrics() else self.train
        known = [iteration for iteration in sorted(rows) if name in rows[iteration]]
        if not known:
            logged = ', '.join([*self.values(), *self.metrics()])
            raise ValueError(f'{name!r} was not logged; there are {logged}')
        return known, [rows[iteration][name] for iteration in known]


def _names(rows: dict[int, dict[str, float]], without: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(name for row in rows.values() for name in row if name not in without))


def read_history(run: Path) -> History:
    """Read the scalars of all starts of a training run; what a resumed run did again counts once.

    Args:
        run: The work dir, with ``<time stamp>/vis_data/scalars.json``, or one such file.

    Raises:
        FileNotFoundError: If there is no log of a training run.
        ValueError: If a file is no log; names its line. A last line that is cut off is left out.
    """
    train: dict[int, dict[str, float]] = {}
    val: dict[int, dict[str, float]] = {}
    logs = [run] if run.is_file() else sorted(run.glob('*/vis_data/scalars.json'))
    for log in logs:
        iteration = 0
        lines = log.read_text().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                if number == len(lines) > 1:  # of a run that was killed while it wrote
                    break
                raise ValueError(f'{log}, line {number} is not JSON: {error}') from error
            if not isinstance(row, dict) or ('loss' in row and 'iter' not in row):
                raise ValueError(f'{log}, line {number} is no line of a log of MMEngine')
            if 'loss' in row:
                iteration = row['iter']
                train[iteration] = row
            else:
                val[iteration] = row
    if not train:
        where = run if run.is_file() else f'{run}/*/vis_data/scalars.json'
        raise FileNotFoundError(f'no training log in {where}')
    return History(train, val)
