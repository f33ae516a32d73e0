"""A server on the loopback interface that sends one file, in the ways that go wrong too."""

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Loopback(ThreadingHTTPServer):
    """Sends ``content`` for every path but /missing.pth.

    Attributes:
        requests: The ``Range`` of each request, '' if it asked for all.
        breaks: After how many bytes each of the next answers ends.
        etag: Of the file; '' for a server that names no version.
        ranges: Whether parts can be asked for.
        shift: Of the bytes that a part is said to begin with.
        statuses: Instead of the file, of the next answers.
        headers: That are sent beside those of the file.
        gate: Answers wait for it.
        pause: Seconds after each 64 KiB.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.content = content
        self.requests: list[str] = []
        self.breaks: list[int] = []
        self.etag = '"one"'
        self.ranges = True
        self.shift = 0
        self.statuses: list[int] = []
        self.headers: dict[str, str] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.pause = 0.0

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing about a client that hung up."""

    def url(self, name: str) -> str:
        return f'http://127.0.0.1:{self.server_address[1]}/{name}'


class _Handler(BaseHTTPRequestHandler):
    server: Loopback

    def do_GET(self) -> None:
        wanted = self.headers.get('Range', '')
        self.server.requests.append(wanted)
        self.server.gate.wait(30)
        status = self.server.statuses.pop(0) if self.server.statuses else 0
        if status or self.path.startswith('/missing'):
            self.send_error(status or 404)
            return
        start = 0
        if wanted and self.server.ranges and self.headers.get('If-Range') == self.server.etag:
            start = int(wanted.removeprefix('bytes=').removesuffix('-'))
        size = len(self.server.content)
        if start and start >= size:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                'Content-Range', f'bytes {start + self.server.shift}-{size - 1}/{size}'
            )
        if self.server.etag:
            self.send_header('ETag', self.server.etag)
        sent = {'Content-Length': str(size - start)} | self.server.headers
        for key, value in sent.items():
            self.send_header(key, value)
        self.end_headers()
        end = start + self.server.breaks.pop(0) if self.server.breaks else size
        for place in range(start, end, 1 << 16):
            self.wfile.write(self.server.content[place : min(place + (1 << 16), end)])
            time.sleep(self.server.pause)

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@contextlib.contextmanager
def serve(content: bytes) -> Iterator[Loopback]:
    with Loopback(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
