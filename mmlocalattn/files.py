"""Files and folders that are written whole or not at all."""

import contextlib
import errno
import glob
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of an OSError that making room on the disk, or a larger quota, mends."""

_LEAST_FREE = 1 << 16  # bytes: with less, a disk is taken for full when something fails


def check_folder(path: str | Path) -> None:
    """Check that a folder is there or can be made, and that files can be written to it.

    Raises:
        NotADirectoryError: If a file is in its place.
        PermissionError: If it cannot be written.
    """
    there = Path(path).absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f'{str(path)!r} cannot be a folder: {str(there)!r} is a file')
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f'{str(path)!r} cannot be written: no permission for {str(there)!r}')


def check_file(path: str | Path) -> None:
    """Check that a file can be written.

    Raises:
        IsADirectoryError: If a folder is in its place.
        NotADirectoryError, PermissionError: Of :func:`check_folder`, for its folder.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f'{str(path)!r} is a folder: name a file')
    check_folder(Path(path).absolute().parent)


@contextlib.contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    """Raise an OSError that names the file, whatever a full disk makes a library raise."""
    try:
        yield
    except Exception as error:
        known = (error, error.__context__)  # PyTorch's archives fail once more when they are closed
        full = [e for e in known if isinstance(e, OSError) and e.errno in NO_SPACE]
        if not full and shutil.disk_usage(path.parent).free > _LEAST_FREE:
            raise
        number = full[0].errno if full else errno.ENOSPC
        reason = f'{os.strerror(number or errno.ENOSPC)}: make room, nothing of it is written'
        raise OSError(number, reason, str(path)) from error


@contextlib.contextmanager
def whole_file(path: Path, *beside: str) -> Iterator[Path]:
    """Write a file under a temporary name beside it, which becomes its own when the block ends.

    Args:
        path: Of the file; its folder is made.
        beside: Suffixes of files of the same name that belong to it, if they are written too. They
            get their names before it does.

    Yields:
        The path to write to, with the same suffix. What is there is removed if the block raises.

    Raises:
        OSError: If the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.stem}.partial{path.suffix}')
    others = [partial.with_suffix(suffix) for suffix in beside]
    try:
        with _full_disk(path):
            yield partial
        written = [other for other in others if other.exists()]
        if written:
            path.unlink(missing_ok=True)  # the old one would go with new ones beside it
        for other in written:
            other.replace(path.with_suffix(other.suffix))
        partial.replace(path)
    finally:
        for file in (partial, *others):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(folder: Path, replace: bool) -> Iterator[Path]:
    """Fill a folder in a hidden sibling, which takes its name when the block ends without an error.

    What a process left that was killed in such a block is removed, but the folder that it had
    moved out of the way comes back if this block raises.

    Args:
        folder: The folder to make.
        replace: Whether an existing ``folder`` is replaced.

    Yields:
        The empty sibling to write to. It is removed if the block raises.

    Raises:
        OSError: If the disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f'.{folder.name}.new-{os.getpid()}')
    old = folder.with_name(f'.{folder.name}.old-{os.getpid()}')
    _clear(folder, old)
    new.mkdir()
    try:
        with _full_disk(folder):
            yield new
        if replace and folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _clear(folder: Path, old: Path) -> None:
    """Remove the hidden siblings of processes that are no more; what they moved becomes ``old``."""
    for kind in ('old', 'new'):
        for left in folder.parent.glob(f'.{glob.escape(folder.name)}.{kind}-*'):
            number = left.name.rpartition('-')[2]
            if not number.isdecimal() or _runs(int(number)):
                continue
            if kind == 'old' and not folder.exists() and (left == old or not old.exists()):
                left.rename(old)
            else:
                shutil.rmtree(left, ignore_errors=True)


def _runs(number: int) -> bool:
    """Whether another process has a number; in a container this one may have that of a dead one."""
    if number == os.getpid():
        return False
    if os.name == 'nt':  # where os.kill ends whatever it is sent to
        return True
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True


def write_json(path: Path, content: object) -> None:
    """Write a JSON file."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1))
