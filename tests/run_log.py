"""Logs of runs, for tests of what reads them."""

import json
from pathlib import Path


def write_log(folder: Path, iterations: range, val: dict[str, float]) -> Path:
    """Write a log as MMEngine does: training rows, then one validation row."""
    log = folder / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    rows = [
        dict(loss=1 / i, loss_cls=0.5 / i, time=0.6, epoch=1, iter=i, step=i) for i in iterations
    ]
    lines = [json.dumps(row) for row in [*rows, dict(val, time=0.1, step=1)]]
    log.write_text('\n'.join(lines) + '\n')
    return log
