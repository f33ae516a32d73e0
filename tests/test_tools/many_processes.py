"""Trains a tiny detector in one, two and four processes, and in two of which one fails.

    python many_processes.py FOLDER

All are forks of this process, so that the stack is imported once. FOLDER gets the work dirs, the
logs of the processes, and ``ended.json``: of each run when its processes ended, and how.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import loss_hook  # noqa: F401  (registers it)
import mmdet.models  # noqa: F401
import torch
from killing.training import load_train, no_descriptions, start_child
from long_running.detector import CONFIG, write_data
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

SIDES = [32] * 12  # of the pictures, of which the second of two processes gets the empty ones
BATCH = 8  # images of all processes: the second batch of an epoch is half of one

EXTRA = """
train_dataloader['batch_size'] = {batch}
model['backbone']['with_cp'] = {with_cp}
optim_wrapper['accumulative_counts'] = 2
custom_hooks = [{hooks}]
"""


@HOOKS.register_module()
class FailHook(Hook):
    """Fails in the second process at the third iteration."""

    def before_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        if runner.iter == 2 and runner.rank == 1:
            raise ZeroDivisionError('of the second process')


def run(
    name: str, processes: int, with_cp: bool = True, hooks: Sequence[str] = ('LossHook',)
) -> dict:
    """Train in so many processes.

    Returns:
        When each process ended, in seconds after the first one did, and its exit status.
    """
    batch = BATCH // processes
    text = ', '.join(f"dict(type='{hook}')" for hook in hooks)
    extra = EXTRA.format(batch=batch, with_cp=with_cp, hooks=text)
    Path(f'{name}.py').write_text(CONFIG + extra)
    argv = [f'{name}.py', '--work-dir', name]
    if processes > 1:
        argv += ['--launcher', 'pytorch']
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    ranks = {}
    for rank in range(processes):
        os.environ.update(RANK=f'{rank}', LOCAL_RANK=f'{rank}', WORLD_SIZE=f'{processes}')
        os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=f'{port}')
        pid = start_child(lambda: load_train().main(argv), Path(f'{name}.{rank}.log'))
        ranks[pid] = rank
    ended: dict[int, tuple[float, int]] = {}
    while len(ended) < processes:
        pid, status = os.wait()
        ended[ranks[pid]] = (time.monotonic(), os.waitstatus_to_exitcode(status))
    first = min(moment for moment, _ in ended.values())
    return {rank: (moment - first, status) for rank, (moment, status) in ended.items()}


def main() -> None:
    os.chdir(sys.argv[1])
    torch.set_num_threads(1)
    write_data(Path(), SIDES)
    with no_descriptions():
        ended = {
            'one': run('one', 1, with_cp=False),
            'two': run('two', 2),
            'four': run('four', 4),
            'fails': run('fails', 2, hooks=['FailHook']),
        }
    Path('ended.json').write_text(json.dumps(ended))


if __name__ == '__main__':
    main()
