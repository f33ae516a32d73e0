"""A work dir is that of one training, which ends at once when it is told to."""

import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmlocalattn.training.one_training import one_training, stops_at_once


def in_child(work: Callable[[], None]) -> tuple[int, str]:
    """The exit status of a function in another process, and what it printed as errors."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writing, 2)
        os.close(writing)
        try:
            work()
        except BaseException as error:
            os.write(2, f'{type(error).__name__}: {error}'.encode())
            os._exit(1)
        os._exit(0)
    os.close(writing)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(reading) as pipe:
        return status, pipe.read()


def hold(work_dir: Path) -> None:
    with one_training() as holder:
        holder(str(work_dir))


def test_a_second_training_is_refused(tmp_path: Path) -> None:
    work_dir = tmp_path / 'deep' / 'run'
    with one_training() as holder:
        holder(str(work_dir))
        holder(str(work_dir))  # once more: as the folder of the data, and as that of the run
        status, said = in_child(lambda: hold(work_dir))
        assert status == 1
        assert f"BlockingIOError: work dir '{work_dir}' is that of a training that runs" in said
        assert f'(process {os.getpid()} on ' in said
        assert said.endswith('wait for it or end it, or give another --work-dir')
        assert in_child(lambda: hold(tmp_path / 'other')) == (0, '')
    assert in_child(lambda: hold(work_dir)) == (0, '')


def test_a_killed_training_holds_nothing(tmp_path: Path) -> None:
    def killed() -> None:
        with one_training() as holder:
            holder(str(tmp_path))
            if os.fork() == 0:  # a worker that outlives it
                os.closerange(0, 3)
                time.sleep(1)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed) == (-signal.SIGKILL, '')
    assert in_child(lambda: hold(tmp_path)) == (0, '')


def test_file_systems_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'lockf', fails)
    with one_training() as holder:
        holder(str(tmp_path))
    assert 'No locks available): whether another training' in ''.join(capfd.readouterr())


def test_processes_of_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with one_training() as holder:
        holder(str(tmp_path))
        monkeypatch.setenv('RANK', '1')
        assert in_child(lambda: hold(tmp_path)) == (0, '')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_stop(tmp_path: Path, number: signal.Signals) -> None:
    def told() -> None:
        with stops_at_once(str(tmp_path)):
            os.kill(os.getpid(), number)

    said = f'\nstopped by {number.name}: there is no checkpoint yet\n'
    assert in_child(told) == (128 + number, said)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_copies_say_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches the workers of data loaders, too."""

    def told() -> None:
        with stops_at_once(str(tmp_path)):
            pid = os.fork()
            if pid == 0:
                os.kill(os.getpid(), number)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + number

    assert in_child(told) == (0, '')


def test_afterwards_signals_are_as_before(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with stops_at_once(str(tmp_path)):
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
