"""Files and folders are written whole or not at all."""

import errno
import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmlocalattn.files import whole_file, whole_folder, write_json


def test_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / 'out.json'
    with pytest.raises(TypeError):
        write_json(path, {'object': object()})
    assert list(tmp_path.iterdir()) == []
    write_json(path, {'a': 1})
    assert json.loads(path.read_text()) == {'a': 1}
    assert list(tmp_path.iterdir()) == [path]


def test_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / 'deep' / 'folder'
    with pytest.raises(FileNotFoundError), whole_folder(folder, replace=False) as new:
        (new / 'none' / 'half').touch()
    assert list(folder.parent.iterdir()) == []
    with whole_folder(folder, replace=False) as new:
        (new / 'first').touch()
        assert not folder.exists()
    with pytest.raises(OSError, match='Directory not empty'), whole_folder(folder, False) as new:
        (new / 'second').touch()
    assert [path.name for path in folder.iterdir()] == ['first']
    with whole_folder(folder, replace=True) as new:
        (new / 'second').touch()
    assert [path.name for path in folder.iterdir()] == ['second']
    assert list(folder.parent.iterdir()) == [folder]


def killed(folder: Path) -> int:
    """A process that is killed while it fills a folder; its number."""
    pid = os.fork()
    if pid == 0:
        with whole_folder(folder, replace=True) as new:
            (new / 'half').touch()
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    return pid


def test_what_is_left_of_the_killed_is_cleared(tmp_path: Path) -> None:
    """Of one with the number of this process too, as in containers; not of one that runs."""
    folder = tmp_path / 'data[1]'
    left = f'.data[1].new-{killed(folder)}'
    assert [path.name for path in tmp_path.iterdir()] == [left]
    (tmp_path / f'.data[1].new-{os.getpid()}').mkdir()
    running = tmp_path / f'.data[1].new-{os.getppid()}'
    running.mkdir()
    with whole_folder(folder, replace=False) as new:
        assert list(new.iterdir()) == []
        (new / 'all').touch()
    assert {*tmp_path.iterdir()} == {folder, running}


def test_the_folder_that_the_killed_had_moved_comes_back(tmp_path: Path) -> None:
    folder, moved = tmp_path / 'data', tmp_path / f'.data.old-{killed(tmp_path / "other")}'
    moved.mkdir()
    (moved / 'all').touch()
    with pytest.raises(KeyError), whole_folder(folder, replace=False):
        raise KeyError
    assert [path.name for path in folder.iterdir()] == ['all']
    folder.rename(moved)
    with whole_folder(folder, replace=False) as new:
        (new / 'new').touch()
    assert [path.name for path in folder.iterdir()] == ['new']
    assert not [*tmp_path.glob('.data.*')]


@pytest.fixture
def quota() -> Iterator[int]:
    """Bytes that a file may have, as on a disk that is full from there on."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    yield 10_000
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def check_full(error: OSError, path: Path) -> None:
    assert error.errno == errno.EFBIG
    assert error.filename == str(path)
    assert 'make room, nothing of it is written' in str(error)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, quota: int) -> None:
    path = tmp_path / 'a.pth'
    path.write_text('old')
    with pytest.raises(OSError, match='make room') as raised, whole_file(path) as partial:
        partial.write_bytes(bytes(quota + 1))
    check_full(raised.value, path)
    with (
        pytest.raises(OSError, match='make room') as raised,
        whole_file(path) as partial,
        partial.open('wb') as file,
    ):
        torch.save(torch.zeros(quota), file)  # raises a RuntimeError of its archive
    check_full(raised.value, path)
    assert path.read_text() == 'old'
    assert [*tmp_path.iterdir()] == [path]


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path, quota: int) -> None:
    folder = tmp_path / 'data'
    with whole_folder(folder, replace=False) as new:
        (new / 'a').touch()
    with pytest.raises(OSError, match='make room') as raised, whole_folder(folder, True) as new:
        (new / 'b').write_bytes(bytes(quota + 1))
    check_full(raised.value, folder)
    assert [path.name for path in tmp_path.rglob('*')] == ['data', 'a']


def test_other_errors_stay(tmp_path: Path) -> None:
    with pytest.raises(KeyError), whole_file(tmp_path / 'a') as partial:
        raise KeyError(partial.name)
