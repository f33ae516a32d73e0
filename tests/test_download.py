"""Files that are downloaded whole or not at all, from a server on the loopback interface."""

import hashlib
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from killing.loopback import Loopback, serve

from mmlocalattn import download as module
from mmlocalattn.download import DownloadError, download

ROOT = Path(__file__).parents[1]
CONTENT = bytes(range(256)) * 8192  # 2 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    monkeypatch.setattr(module, 'PAUSE', 0)
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    with serve(CONTENT) as loopback:
        yield loopback


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'cache' / 'a.pth'


def left_in(folder: Path) -> set[str]:
    """All but the lock, which stays."""
    return {file.name for file in folder.iterdir()} - {'.a.pth.lock'}


def test_a_file_is_downloaded_once(server: Loopback, path: Path) -> None:
    for _ in range(2):
        download(server.url('a.pth'), path, SHA256)
    assert path.read_bytes() == CONTENT
    assert server.requests == ['']
    assert left_in(path.parent) == {'a.pth'}


def test_a_broken_download_is_taken_up_at_once(server: Loopback, path: Path) -> None:
    server.breaks = [1000, 500000]
    download(server.url('a.pth'), path, SHA256)
    assert path.read_bytes() == CONTENT
    assert server.requests == ['', 'bytes=1000-', 'bytes=501000-']


def give_up(server: Loopback, path: Path) -> None:
    """Break off behind the first 1000 bytes, until the download is given up."""
    server.breaks = [1000, 0, 0, 0]
    message = r'the connection ended at 1000 of 2097152 bytes; 1000 bytes of it are kept, with'
    with pytest.raises(DownloadError, match=message):
        download(server.url('a.pth'), path)
    assert len(server.requests) == 1 + module.TRIES
    assert left_in(path.parent) == {'.a.pth.part', '.a.pth.json'}
    server.requests.clear()


def test_the_next_call_goes_on(server: Loopback, path: Path) -> None:
    give_up(server, path)
    download(server.url('a.pth'), path, SHA256)
    assert server.requests == ['bytes=1000-']
    assert path.read_bytes() == CONTENT


def test_what_has_changed_since_is_begun_anew(server: Loopback, path: Path) -> None:
    give_up(server, path)
    server.etag, server.content = '"two"', CONTENT[::-1]
    download(server.url('a.pth'), path)
    assert server.requests == ['bytes=1000-']  # If-Range, so that the server sends all of it
    assert path.read_bytes() == CONTENT[::-1]


def test_another_address_is_begun_anew(server: Loopback, path: Path) -> None:
    give_up(server, path)
    download(server.url('b.pth'), path, SHA256)
    assert server.requests == ['']


@pytest.mark.parametrize('etag', ['"one"', ''])
def test_servers_without_ranges(server: Loopback, path: Path, etag: str) -> None:
    server.ranges, server.etag, server.breaks = False, etag, [1000]
    download(server.url('a.pth'), path, SHA256)
    assert server.requests == ['', 'bytes=1000-' if etag else '']
    assert path.read_bytes() == CONTENT


def test_a_file_that_is_shorter_now(server: Loopback, path: Path) -> None:
    give_up(server, path)
    server.content = b'short'
    download(server.url('a.pth'), path)
    assert server.requests == ['bytes=1000-', '']
    assert path.read_bytes() == b'short'


def test_a_file_of_which_all_is_there_already(server: Loopback, path: Path) -> None:
    give_up(server, path)
    path.with_name('.a.pth.part').write_bytes(CONTENT)  # and the process ended before it was done
    download(server.url('a.pth'), path, SHA256)
    assert server.requests == []
    assert path.read_bytes() == CONTENT


def test_other_bytes_than_those_asked_for(server: Loopback, path: Path) -> None:
    give_up(server, path)
    server.shift = 1
    download(server.url('a.pth'), path, SHA256)
    assert server.requests == ['bytes=1000-', '']


def test_a_web_page_in_its_place_spoils_nothing(server: Loopback, path: Path) -> None:
    give_up(server, path)
    kept = path.with_name('.a.pth.part').read_bytes()
    server.headers, server.etag = {'Content-Type': 'text/html'}, '"portal"'
    with pytest.raises(DownloadError, match='answers with a web page'):
        download(server.url('a.pth'), path)
    assert path.with_name('.a.pth.part').read_bytes() == kept == CONTENT[:1000]


def test_a_server_that_is_busy_is_asked_again(server: Loopback, path: Path) -> None:
    server.statuses = [503, 429]
    download(server.url('a.pth'), path, SHA256)
    assert len(server.requests) == 3


@pytest.mark.parametrize('sha256', ['0' * 64, SHA256.upper()])
def test_a_wrong_hash(server: Loopback, path: Path, sha256: str) -> None:
    with pytest.raises(DownloadError, match=rf'sha256 {SHA256}, expected {sha256}: nothing of it'):
        download(server.url('a.pth'), path, sha256)
    assert left_in(path.parent) == set()


def test_a_file_of_another_kind(server: Loopback, path: Path) -> None:
    def refuse(file: Path) -> None:
        raise ValueError(f'{file.stat().st_size} bytes are too many')

    with pytest.raises(DownloadError, match=r'sent something else.*: 2097152 bytes are too many'):
        download(server.url('a.pth'), path, check=refuse)
    assert left_in(path.parent) == set()


def test_what_is_not_there(server: Loopback, path: Path) -> None:
    with pytest.raises(DownloadError, match=r'missing\.pth is not there: HTTP 404 Not Found$'):
        download(server.url('missing.pth'), path)
    assert len(server.requests) == 1
    server.headers = {'Content-Type': 'text/html; charset=utf-8'}
    with pytest.raises(DownloadError, match='answers with a web page and not with the file'):
        download(server.url('a.pth'), path)
    assert left_in(path.parent) == set()


def test_no_server(server: Loopback, path: Path) -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    with pytest.raises(DownloadError, match=r'cannot be downloaded: .*refused$'):
        download(f'http://127.0.0.1:{port}/a.pth', path)


def test_too_little_space(server: Loopback, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple('usage', 'free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage(1 << 20))
    with pytest.raises(DownloadError, match=r'cache has 1 MiB free and http.* needs 2 more$'):
        download(server.url('a.pth'), path)
    assert left_in(path.parent) == set()


def test_a_disk_that_fills_up(server: Loopback, path: Path) -> None:
    """Here by a limit on the size of files, which fails where a full disk does."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        with pytest.raises(
            DownloadError, match=r'cache does not take http.*a\.pth: File too large'
        ):
            download(server.url('a.pth'), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert left_in(path.parent) == set()


DOWNLOAD = """
import sys
from pathlib import Path
from mmlocalattn.download import download

download(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
print('whole' if Path(sys.argv[2]).stat().st_size == 2 << 20 else 'part')
"""


def test_two_processes_download_once(server: Loopback, path: Path) -> None:
    server.gate.clear()
    command = [sys.executable, '-c', DOWNLOAD, server.url('a.pth'), str(path), SHA256]
    processes = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(2)
    ]
    waits = threading.Event()
    said = []

    def listen(stream: object) -> None:
        for line in stream:
            said.append(line)
            if 'waiting' in line:
                waits.set()

    readers = [threading.Thread(target=listen, args=[each.stderr]) for each in processes]
    for reader in readers:
        reader.start()
    assert waits.wait(60)
    server.gate.set()
    for process, reader in zip(processes, readers):
        reader.join()
        assert process.stdout.read() == 'whole\n', said
        process.stdout.close()
        assert process.wait() == 0
    assert server.requests == ['']
    assert left_in(path.parent) == {'a.pth'}
