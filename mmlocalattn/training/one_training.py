"""One training in a work dir at a time, and one that is told to stop."""

import contextlib
import errno
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from mmengine.logging import print_log

from mmlocalattn.command_line import on_signals
from mmlocalattn.training.checkpoint import last_whole_checkpoint
from mmlocalattn.training.processes import is_first_process

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # what has no lock is checked before each use

LOCK = '.training'
"""The file in a work dir that a training holds."""


@contextlib.contextmanager
def one_training() -> Iterator[Callable[[str], None]]:
    """Hold work dirs for one training, all of whose processes count as one.

    A lock ends with its process, however that ends: none is ever stale. It is one of POSIX, which
    workers of data loaders do not inherit. Windows has none, and neither have some network file
    systems, of which the user is told.

    Yields:
        What holds a work dir until the block ends. It makes the folder, and raises a
        BlockingIOError if another training is in it; says which.
    """
    held: dict[str, IO] = {}

    def hold(work_dir: str) -> None:
        if is_first_process() and os.path.realpath(work_dir) not in held:
            held[os.path.realpath(work_dir)] = _lock(Path(work_dir))

    try:
        yield hold
    finally:
        for file in held.values():
            file.close()


def _lock(work_dir: Path) -> IO:
    work_dir.mkdir(parents=True, exist_ok=True)
    file = open(work_dir / LOCK, 'a+')  # noqa: SIM115  (closing it ends the lock)
    file.seek(0)
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):  # which POSIX has for a held lock
            print_log(
                f'No lock for {str(work_dir / LOCK)!r} ({error.strerror}): whether another '
                'training is in the work dir is not checked.',
                logger=None,
                level=logging.WARNING,
            )
            return file
        holder = file.read().strip()
        file.close()
        raise BlockingIOError(
            f'work dir {str(work_dir)!r} is that of a training that runs ({holder}): wait for it '
            'or end it, or give another --work-dir'
        ) from error
    file.truncate(0)
    since = time.strftime('%Y-%m-%d %H:%M:%S')
    file.write(f'process {os.getpid()} on {socket.gethostname()}, since {since}')
    file.flush()
    return file


@contextlib.contextmanager
def stops_at_once(work_dir: str) -> Iterator[None]:
    """End the program at SIGTERM and Ctrl-C without a traceback, and say where it can go on.

    Nothing is saved then: an epoch that is half done could not be resumed exactly. Checkpoints are
    whole whenever that comes.

    Args:
        work_dir: Of the training.
    """

    def stop(number: signal.Signals) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()
        if is_first_process():
            last = last_whole_checkpoint(work_dir)
            goes_on = f'--resume goes on from {last}' if last else 'there is no checkpoint yet'
            # Not printed: this may interrupt a print.
            os.write(2, f'\nstopped by {number.name}: {goes_on}\n'.encode())
        os._exit(128 + number)

    with on_signals(stop, signal.SIGTERM, signal.SIGINT):
        yield
