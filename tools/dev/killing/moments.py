"""Moments of a training or a download: counted in one run, struck in another."""

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

DELAY = 0.03
"""Seconds, at most, from the call that is drawn to the kill: it comes in the middle of whatever."""

REACHED = 0.95
"""Share of the calls of a part that every run has: two runs differ by a few."""


@dataclass(frozen=True)
class Moment:
    """When a training or a download is killed.

    Attributes:
        part: Of it.
        call: The how many-th call of a Python function in that part.
        delay: Seconds after it.
        signal: Its name.
    """

    part: str
    call: int
    delay: float
    signal: str = 'SIGKILL'


def parts() -> dict[CodeType, str]:
    """The functions that the parts of a training run in."""
    from mmengine.model import BaseModel
    from mmengine.runner import Runner, ValLoop

    from mmlocalattn.data.folders import read_folder
    from mmlocalattn.data.write_splits import write_splits
    from mmlocalattn.training.whole_checkpoints import WholeFileBackend

    save: Any = Runner.save_checkpoint  # for the first process alone, in a wrapper
    return {
        read_folder.__code__: 'data preparation',
        write_splits.__code__: 'data conversion',
        BaseModel.train_step.__code__: 'forward and backward',
        ValLoop.run.__code__: 'validation',
        save.__wrapped__.__code__: 'checkpoint',
        WholeFileBackend.put.__code__: 'checkpoint write',
    }


class Watch:
    """Counts the calls in each part, and strikes at a moment.

    Args:
        parts: By the code of the functions that they run in.
        moment: None to count alone.
        strike: Called at it.
    """

    def __init__(
        self,
        parts: Mapping[CodeType, str],
        moment: Moment | None = None,
        strike: Callable[[Moment], None] | None = None,
    ) -> None:
        self.calls: Counter[str] = Counter()
        self._parts, self._stack = parts, ['between']
        self._moment, self._strike = moment, strike

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        """As ``sys.setprofile`` calls it."""
        part = self._parts.get(frame.f_code)
        if event == 'call':
            if part:
                self._stack.append(part)
            here = self._stack[-1]
            self.calls[here] += 1
            moment = self._moment
            if moment and self.calls[here] == moment.call and here == moment.part:
                assert self._strike
                self._strike(moment)
        elif event == 'return' and part:
            self._stack.pop()


def strike_soon(moment: Moment) -> None:
    """Signal this process from another one, so that it comes at any instruction.

    The time is left in the file ``struck``.
    """
    sys.setprofile(None)
    me = os.getpid()
    if os.fork() == 0:
        time.sleep(moment.delay)
        Path('struck').write_text(str(time.monotonic()))
        os.kill(me, signal.Signals[moment.signal])
        os._exit(0)


def seconds_since_strike(folder: Path) -> float:
    """How long ago a process was signalled that worked in a folder; -1 if it was not."""
    ended = time.monotonic()
    time.sleep(2 * DELAY)  # that who strikes has ended too
    struck = folder / 'struck'
    seconds = round(ended - float(struck.read_text()), 2) if struck.exists() else -1
    struck.unlink(missing_ok=True)
    return seconds


def draw(calls: Counter[str], number: int, seed: int) -> list[Moment]:
    """Moments that are spread evenly over the parts, each at random in its part.

    Args:
        calls: In each part.
        number: Of kills; after each ten come a SIGTERM and a SIGINT.
        seed: Of what is drawn.
    """
    chance = random.Random(seed)
    names = sorted(calls)
    signals = ['SIGKILL'] * number + ['SIGTERM', 'SIGINT'] * -(-number // 10)
    return [
        Moment(
            name,
            chance.randint(1, max(int(REACHED * calls[name]), 1)),
            round(chance.uniform(0, DELAY), 4),
            which,
        )
        for name, which in zip(names * len(signals), signals)
    ]
