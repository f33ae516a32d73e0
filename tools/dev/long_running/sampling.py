"""A training of thousands of iterations whose memory is looked at."""

import os
import time
from pathlib import Path

from killing.training import load_train, no_descriptions
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from long_running.detector import CONFIG, write_data

SIDES = [32, 32, 40, 40, 48, 48, 56, 56, 64, 64]
SAMPLES = 100  # of each run

LENGTH = """
train_dataloader.update(sampler=dict(type='InfiniteSampler', shuffle=True))
train_cfg = dict(type='IterBasedTrainLoop', max_iters={iterations}, val_interval={iterations} + 1)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval={interval}),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval={tenth}, max_keep_ckpts=1))
custom_hooks = [dict(type='MemoryHook', interval={interval})]
"""


@HOOKS.register_module()
class MemoryHook(Hook):
    """Notes the memory of this process and the loss.

    Args:
        interval: Iterations from one note to the next.

    Attributes:
        memory: MiB that are resident.
        losses: The mean over an interval.
    """

    memory: list[float]
    losses: list[float]

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.total = 0.0

    def before_train(self, runner: Runner) -> None:
        MemoryHook.memory, MemoryHook.losses = [], []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object, outputs: dict
    ) -> None:
        self.total += outputs['loss'].item()
        if self.every_n_train_iters(runner, self.interval):
            self.memory.append(resident())
            self.losses.append(self.total / self.interval)
            self.total = 0.0


def resident() -> float:
    """MiB of this process that are in memory, on Linux."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / (1 << 20)


def growth(memory: list[float]) -> float:
    """By which share the largest of the last samples exceeds the largest of those before.

    The first fifth is left out: buffers grow until the largest pictures have come.
    """
    after = memory[len(memory) // 5 :]
    middle = len(after) // 2
    return max(after[middle:]) / max(after[:middle]) - 1


def train(folder: Path, iterations: int, *options: str) -> dict:
    """Train with batches of two.

    Args:
        folder: To work in.
        iterations: At least :data:`SAMPLES`.
        options: Of tools/train.py.

    Returns:
        What is printed and written of a run.
    """
    write_data(folder, SIDES)
    os.chdir(folder)
    interval = iterations // SAMPLES
    length = LENGTH.format(iterations=iterations, interval=interval, tenth=iterations // 10)
    Path('c.py').write_text(CONFIG + length)
    started = time.monotonic()
    with no_descriptions():
        load_train().main(['c.py', '--work-dir', 'run', *options])
    memory, losses = MemoryHook.memory, MemoryHook.losses
    return dict(
        iterations=iterations,
        options=options,
        seconds=round(time.monotonic() - started, 1),
        growth=growth(memory),
        interval=interval,
        memory=memory,
        losses=losses,
    )
