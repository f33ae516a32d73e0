"""A download from a server on the loopback interface, in a child."""

import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from killing.loopback import serve
from killing.moments import Moment, Watch, seconds_since_strike, strike_soon
from killing.training import in_child
from mmlocalattn import download as module
from mmlocalattn.command_line import one_line_errors

PARTS = {module._read.__code__: 'download', module.download.__code__: 'around a download'}
CONTENT = bytes(range(256)) * (1 << 13)  # 2 MiB
PAUSE = 0.003  # seconds of the server after each 64 KiB, that a kill comes in the middle


def count_calls(folder: Path) -> Counter[str]:
    """Download without an end before its time; the calls in each part."""
    with serve(CONTENT) as server:
        server.pause = PAUSE
        calls = folder / 'calls.json'
        log = folder / 'download.log'
        if in_child(lambda: _download(folder, 'whole_file', server.url('a'), None, calls), log):
            raise SystemExit(log.read_text()[-2000:])
    counted = json.loads(calls.read_text())
    return Counter({part: counted[part] for part in PARTS.values()})


def kill(folder: Path, name: str, moment: Moment) -> dict:
    """Kill a download into a folder of a name at a moment, and start it again.

    Returns:
        As :func:`killing.training.kill`; it ``went_on`` if not all was downloaded again.
    """
    log = folder / f'{name}.log'
    with serve(CONTENT) as server:
        server.pause = PAUSE
        status = in_child(lambda: _download(folder, name, server.url('a'), moment), log)
        seconds = seconds_since_strike(folder)
        before = len(server.requests)
        resumed = in_child(lambda: _download(folder, name, server.url('a')), log)
        asked = server.requests[before:]
    left = {path.name: path.read_bytes() for path in (folder / name).iterdir()}
    left.pop('.a.lock', None)
    differing = [file for file in {*left, 'a'} if file != 'a' or left.get(file) != CONTENT]
    shutil.rmtree(folder / name)
    return dict(
        status=status,
        seconds=seconds,
        resumed=resumed,
        went_on='' not in asked,
        differing=differing,
        log=log.read_text()[-2000:] if resumed else '',
    )


def _download(
    folder: Path, name: str, address: str, moment: Moment | None = None, calls: Path | None = None
) -> None:
    os.chdir(folder)
    os.environ['no_proxy'] = '127.0.0.1'
    watch = Watch(PARTS, moment, strike_soon)
    if moment or calls:
        sys.setprofile(watch)
    with one_line_errors():
        module.download(address, folder / name / 'a', hashlib.sha256(CONTENT).hexdigest())
    sys.setprofile(None)
    if moment:
        time.sleep(30)  # the strike may still be on its way
    if calls:
        calls.write_text(json.dumps(watch.calls))
