"""Runs the tools in children with little memory and time, and tells what each of them did.

As a program it is the server: it imports the tools once and forks for each command, so that one
costs a fraction of a second. :class:`Zone` starts it and talks to it in lines of JSON.
"""

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
TOOLS = ('train', 'test', 'image_demo', 'convert_checkpoint', 'export', 'analysis/check_data')
IMPORTS = (
    'mmdet.apis',
    'onnxruntime',
    'openvino',
    'mmlocalattn.converters.convert',
    'mmlocalattn.visualisation.predictor',
)
"""What takes seconds, once."""

MEGABYTES = 1024
"""Of address space that a command gets besides what the imports of the stack take."""

SECONDS = 60
"""After which a command is killed."""


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        rc: Its exit status; negative for the signal that killed it.
        out: What it printed.
        err: What it printed as errors.
        megabytes: Of memory at its peak, besides what the imports of the stack take.
        written: Files outside of its folder that it opened for writing.
        executed: Commands that it started.
    """

    rc: int
    out: str
    err: str
    megabytes: int
    written: list[str]
    executed: list[str]


class Zone:
    """The server, and the folder that it was started for."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        )

    def run(self, folder: Path, tool: str, *argv: object, megabytes: int = MEGABYTES) -> Outcome:
        """Run a tool with ``folder`` as its current and its only folder to write to."""
        job = dict(folder=str(folder), tool=tool, argv=[str(a) for a in argv], megabytes=megabytes)
        assert self._server.stdin
        assert self._server.stdout
        print(json.dumps(job), file=self._server.stdin, flush=True)
        answer = json.loads(self._server.stdout.readline())
        texts = ((folder / f'std{name}').read_text(errors='replace') for name in ('out', 'err'))
        before, written, executed = _seen(folder)
        megabytes = max(answer['most'] - before, 0) >> 20
        return Outcome(answer['rc'], *texts, megabytes, written, executed)

    def close(self) -> None:
        """Let the server end."""
        self._server.communicate()


def _seen(folder: Path) -> tuple[int, list[str], list[str]]:
    first, *lines = (folder / 'audit').read_text().splitlines()
    written, executed = [], []
    for kind, what in map(json.loads, lines):
        if kind == 'open' and not what.startswith((str(folder), '/dev/')):
            written.append(what)
        if kind == 'execute':
            executed.append(what)
    return int(first), written, executed


def _serve() -> None:
    jobs, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), 'w')
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # some imports start programs that read it
    os.dup2(2, 1)
    tools = {name: _load(name) for name in TOOLS}
    for line in jobs:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(tools[job['tool']], job)
        _, status, usage = os.wait4(pid, 0)
        answer = dict(rc=os.waitstatus_to_exitcode(status), most=usage.ru_maxrss << 10)
        print(json.dumps(answer), file=answers, flush=True)


def _load(name: str) -> ModuleType:
    for needed in IMPORTS:
        importlib.import_module(needed)
    path = ROOT / f'tools/{name}.py'
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pages(column: int) -> int:
    """Of this process: 0 all of its address space, 1 what of it is in memory."""
    return int(Path('/proc/self/statm').read_text().split()[column])


def _child(tool: ModuleType, job: dict) -> None:
    os.chdir(job['folder'])
    tempfile.tempdir = job['folder']
    sys.dont_write_bytecode = True  # it would count as written
    for stream, number in (('stdout', 1), ('stderr', 2)):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    audit = os.open('audit', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(audit, f'{_pages(1) * resource.getpagesize()}\n'.encode())
    signal.alarm(SECONDS)
    limit = _pages(0) * resource.getpagesize() + (job['megabytes'] << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.addaudithook(_watch(audit))
    rc = 0
    try:
        tool.main(job['argv'])
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        rc = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
        rc = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(rc)


def _watch(audit: int) -> Any:
    """What notes files that are opened for writing, and commands that are started."""

    def note(kind: str, what: object) -> None:
        os.write(audit, json.dumps([kind, str(what)]).encode() + b'\n')

    def hook(event: str, args: tuple) -> None:
        if event == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR):
            note('open', os.path.abspath(os.fsdecode(args[0])) if args[0] != audit else '')
        elif event in ('os.system', 'subprocess.Popen', 'os.exec', 'os.posix_spawn'):
            note('execute', args[0])

    return hook


if __name__ == '__main__':
    _serve()
