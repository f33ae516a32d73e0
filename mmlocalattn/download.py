"""Downloading a file once, whole or not at all."""

import hashlib
import http.client
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

TRIES = 3
"""How often a download that stands still is taken up again before it is given up."""

PAUSE = 2
"""Seconds before it is taken up again, more the second time."""

WAIT = 30
"""Seconds after which a server that sends nothing counts as lost."""

_CHUNK = 1 << 18
_LOST = (http.client.HTTPException, OSError)  # what reading from a connection raises


class DownloadError(OSError):
    """A file that could not be had; the message says of where it is and what to do."""


class _Broken(Exception):
    """A connection that ended early; what has come is kept."""


@dataclass(frozen=True)
class _Answer:
    """Of which file the beginning is kept: one that has changed is begun anew.

    Attributes:
        address: That was asked.
        version: The server's ``ETag`` or date, '' if it gives none.
        size: Bytes of the whole file, None if the server does not say.
    """

    address: str
    version: str
    size: int | None


def download(
    address: str,
    path: Path,
    sha256: str | None = None,
    check: Callable[[Path], object] | None = None,
) -> None:
    """Download a file, unless it is there.

    A download that broke off is taken up where it stopped, in this call and in the next one, if the
    server can do that. Of several processes one downloads and the others wait for it.

    Args:
        address: http or https; proxies are those of the environment.
        path: Of the file, whose folder is made. It appears when it is complete.
        sha256: That the file must have, in hexadecimal.
        check: Raises a ValueError for a file that is not the wanted one.

    Raises:
        DownloadError: If the server does not have the file or cannot be reached, if the disk is
            full, or the file is not the wanted one; all in one line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f'.{path.name}.lock'))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        Console(stderr=True).print(f'{path.name}: another process downloads it, waiting')
        lock.acquire()
    try:
        if not path.exists():
            part = path.with_name(f'.{path.name}.part')
            _complete(address, part)
            _verify(address, part, sha256, check)
            part.replace(path)
            _record(part).unlink()
    finally:
        lock.release()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _record(part: Path) -> Path:
    return part.with_suffix('.json')


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _record(part).unlink(missing_ok=True)


def _verify(
    address: str, part: Path, sha256: str | None, check: Callable[[Path], object] | None
) -> None:
    if sha256 and (found := sha256_of(part)) != sha256:
        _forget(part)
        raise DownloadError(
            f'{address} sent a file with sha256 {found}, expected {sha256}: nothing of it is kept'
        )
    try:
        if check:
            check(part)
    except ValueError as error:
        _forget(part)
        raise DownloadError(
            f'{address} sent something else, of which nothing is kept: {error}'
        ) from error
    except BaseException:
        _forget(part)
        raise


def _complete(address: str, part: Path) -> None:
    """Download what is missing of a file, some of which may be there."""
    tries, most = 0, 0
    while True:
        start, version, size = _kept(address, part)
        if start and start == size:
            return None
        most = max(most, start)
        try:
            return _fetch(address, part, start, version)
        except _Broken as error:
            kept, *_ = _kept(address, part)
            tries = 0 if kept > most else tries + 1
            if tries == TRIES:
                if not kept:
                    _forget(part)
                note = f'; {kept} bytes of it are kept, with which the next call goes on'
                raise DownloadError(
                    f'{address} cannot be downloaded: {error}{note if kept else ""}'
                ) from error
        time.sleep(PAUSE * tries)


def _kept(address: str, part: Path) -> tuple[int, str, int | None]:
    """How many bytes there are of a file to go on from, of which version, and of how many."""
    try:
        answer = _Answer(**json.loads(_record(part).read_text()))
        if answer.address == address and answer.version:
            return part.stat().st_size, answer.version, answer.size
    except (OSError, ValueError, TypeError):
        pass
    return 0, '', None


def _fetch(address: str, part: Path, start: int, version: str) -> None:
    """Ask for a file from one of its bytes on, and append what comes.

    Args:
        address: Of the file.
        part: Has the first ``start`` bytes.
        start: 0 for all of the file.
        version: Of which these bytes are.

    Raises:
        _Broken: If the connection ends early.
        DownloadError: If another try would end as this one.
    """
    request = urllib.request.Request(address, headers={'User-Agent': 'mmlocalattn'})
    if start:
        request.add_header('Range', f'bytes={start}-')
        request.add_header('If-Range', version)
    try:
        response = urllib.request.urlopen(request, timeout=WAIT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the file is shorter now
            _forget(part)
        if error.code in (408, 416, 429) or error.code >= 500:
            raise _Broken(f'HTTP {error.code} {error.reason}') from error
        raise DownloadError(f'{address} is not there: HTTP {error.code} {error.reason}') from error
    except _LOST as error:
        raise _Broken(str(getattr(error, 'reason', error))) from error
    with response:
        if response.status != 206:
            start = 0
        place, _, whole = response.headers.get('Content-Range', '').rpartition('/')
        if start and not place.startswith(f'bytes {start}-'):
            _forget(part)
            raise _Broken(f'it sends other bytes than those asked for, {place!r}')
        size = whole if start else response.headers.get('Content-Length', '')
        answer = _answer_of(response, address, size)
        if not start:  # before it is recorded of what the next bytes are
            _forget(part)
        _receive(response, part, start, answer)


def _answer_of(response: http.client.HTTPResponse, address: str, size: str) -> _Answer:
    headers = response.headers
    if headers.get_content_type() == 'text/html':
        raise DownloadError(
            f'{address} answers with a web page and not with the file: open it in a browser'
        )
    etag = headers.get('ETag', '')
    version = '' if etag.startswith('W/') else etag  # a weak one does not tell bytes apart
    version = version or headers.get('Last-Modified', '')
    return _Answer(address, version, int(size) if size.isdecimal() else None)


def _receive(response: Any, part: Path, start: int, answer: _Answer) -> None:
    """Append what comes to a file of which ``start`` bytes are kept."""
    free = shutil.disk_usage(part.parent).free
    if answer.size is not None and answer.size - start > free:
        raise DownloadError(
            f'{part.parent} has {free >> 20} MiB free and {answer.address} needs '
            f'{(answer.size - start) >> 20} more'
        )
    try:
        _record(part).write_text(json.dumps(asdict(answer)))
        with part.open('r+b' if start else 'wb') as file, _progress() as progress:
            file.seek(start)
            name = part.name.removeprefix('.').removesuffix('.part')
            task = progress.add_task(name, total=answer.size, completed=start)
            while chunk := _read(response):
                file.write(chunk)
                progress.advance(task, len(chunk))
            size = file.tell()
    except OSError as error:  # of the disk: that of the connection is a _Broken
        _forget(part)
        raise DownloadError(
            f'{part.parent} does not take {answer.address}: {error.strerror}; nothing of it is kept'
        ) from error
    if answer.size is not None and size < answer.size:
        raise _Broken(f'the connection ended at {size} of {answer.size} bytes')


def _read(response: Any) -> bytes:
    try:
        return response.read(_CHUNK)
    except _LOST as error:
        raise _Broken(f'the connection ended: {error}') from error


def _progress() -> Progress:
    return Progress(
        '{task.description}',
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
