"""The command lines of the tools: shared arguments, kinds of values, errors in one line."""

import argparse
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mmlocalattn.adapt import BACKBONES
from mmlocalattn.command_line import (
    add_common_arguments,
    add_size_arguments,
    image_size,
    key_value,
    one_line_errors,
    output_file,
    output_folder,
    positive,
    share,
)

ROOT = Path(__file__).parents[1]
FILES = {*(ROOT / 'tools').rglob('*.py')}
TOOLS = sorted(path for path in FILES if 'def parse_args(' in path.read_text())
# Runs a tool and prints which packages that has imported besides Python's own.
IMPORTED = """
import json, os, runpy, sys

script, *argv = sys.argv[1:]
sys.path[0] = os.path.dirname(script)
sys.argv = [script, *argv]
before = set(sys.modules)
try:
    runpy.run_path(script, run_name='__main__')
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
new = {name.partition('.')[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(new - sys.stdlib_module_names - {'__mp_main__'})))
"""


@pytest.mark.parametrize('path', TOOLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_help_imports_nothing(path: Path) -> None:
    """Neither the stack nor any other package, so that an answer takes no time."""
    run = subprocess.run(
        [sys.executable, '-c', IMPORTED, str(path), '--help'], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert 'usage:' in run.stdout
    imported = json.loads(run.stdout.splitlines()[-1])
    assert {*imported} <= {'mmlocalattn', 'benchmarking'}


def test_every_tool_is_found() -> None:
    """Those that have moved start the new one, and what tools import has no command line."""
    moved = {path for path in FILES if path.read_text().startswith('"""Moved to ')}
    names = ('aarch64', 'benchmarking', 'drop_in', 'fuzzing', 'killing', 'long_running')
    parts = {path for path in FILES if path.parent.name in names}
    (worker,) = FILES - {*TOOLS} - moved - parts
    assert worker.name == 'build_worker.py'  # which compare_builds.py starts


@pytest.mark.parametrize('spelling', ['--local_rank', '--local-rank'])
def test_arguments(spelling: str) -> None:
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    argv = ['c.py', '--cfg-options', 'a=1', 'b.c=[1,2]', spelling, '3', '--launcher', 'mpi']
    args = parser.parse_args([*argv, '--cfg-options', 'd=e=f'])
    assert args.cfg_options == ['a=1', 'b.c=[1,2]', 'd=e=f']
    assert args.local_rank == 3
    assert args.launcher == 'mpi'
    assert args.work_dir is None


@pytest.mark.parametrize('text', ['a', '=1', ''])
def test_not_key_and_value(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^'{text}' is not KEY=VALUE$"):
        key_value(text)


def test_unknown_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(['c.py', '--backbone', 'ssvit_x'])
    assert "invalid choice: 'ssvit_x'" in (said := capsys.readouterr().err)
    assert all(name in said for name in BACKBONES)


def test_image_size() -> None:
    assert image_size('800x1344') == (800, 1344)


@pytest.mark.parametrize('text', ['800', '800x', '0x4', '-1x4', '8x8x8', 'axb'])
def test_not_an_image_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not HEIGHTxWIDTH"):
        image_size(text)


def test_errors_are_one_line() -> None:
    with pytest.raises(SystemExit, match=r'^error: no such file$'), one_line_errors():
        raise FileNotFoundError('no such file')
    with (
        pytest.raises(SystemExit, match=r'^error: denied\nWritten\.$'),
        one_line_errors('Written.'),
    ):
        raise PermissionError('denied')
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError


STOPPED = """
import os, signal, sys
from pathlib import Path
from mmlocalattn.command_line import one_line_errors
from mmlocalattn.files import whole_file

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell has '&'
with one_line_errors('It goes on later.'), whole_file(Path(sys.argv[1])) as partial:
    partial.write_text('half')
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    signal.pause()
"""


@pytest.mark.parametrize(('name', 'status'), [('SIGINT', 130), ('SIGTERM', 143)])
def test_who_stops_a_program_gets_one_line(tmp_path: Path, name: str, status: int) -> None:
    command = [sys.executable, '-c', STOPPED, str(tmp_path / 'file'), name]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (status, f'stopped by {name}\nIt goes on later.\n')
    assert list(tmp_path.iterdir()) == []


def test_positive() -> None:
    assert positive('3') == 3


@pytest.mark.parametrize('text', ['0', '-1', '1.5', 'x', ''])
def test_not_positive(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^'{text}' is no whole number from 1$"):
        positive(text)


def test_share() -> None:
    assert [share(text) for text in ('0', '0.5', '1', '1e-3')] == [0, 0.5, 1, 0.001]


@pytest.mark.parametrize('text', ['-0.1', '1.01', '30', 'nan', 'x', ''])
def test_not_a_share(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^'{text}' is no number from 0 to 1$"):
        share(text)


def test_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made; where a file is in the place of a folder, nothing can be."""
    monkeypatch.chdir(tmp_path)
    assert output_file('new/folder/file') == Path('new/folder/file')
    assert output_folder('new/folder') == Path('new/folder')
    assert list(tmp_path.iterdir()) == []
    Path('file').touch()
    assert output_file('file') == Path('file')
    Path('folder').mkdir()
    assert output_folder('folder') == Path('folder')
    for kind, text, message in (
        (output_file, 'folder', "^'folder' is a folder: name a file$"),
        (output_file, 'file/x', f"/file' cannot be a folder: '{tmp_path}/file' is a file$"),
        (output_folder, 'file', f"^'file' cannot be a folder: '{tmp_path}/file' is a file$"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            kind(text)
    monkeypatch.setattr('os.access', lambda path, mode: False)
    with pytest.raises(argparse.ArgumentTypeError, match=r"^'x' cannot be written: no permission"):
        output_folder('x')


@pytest.mark.parametrize(
    ('tool', 'argv', 'message'),
    [
        ('train', ['c.py', '--work-dir', 'FILE'], "--work-dir: 'FILE' cannot be a folder: "),
        ('test', ['c.py', 'c.pth', '--work-dir', 'FILE'], "--work-dir: 'FILE' cannot be a folder"),
        ('test', ['c.py', 'c.pth', '--show-dir', 'FILE'], "--show-dir: 'FILE' cannot be a folder"),
        (
            'image_demo',
            ['c.py', 'c.pth', 'a.png', '--out-dir', 'FILE'],
            "'FILE' cannot be a folder",
        ),
        ('image_demo', ['c.py', 'c.pth', 'a.png', '--score-thr', '30'], "'30' is no number from 0"),
        ('export', ['c.py', '--format', 'onnx', '--out', 'DIR'], "--out: 'DIR' is a folder: name "),
        ('convert_checkpoint', ['ssvit', 'a.pth', 'DIR'], "dst: 'DIR' is a folder: name a file"),
        ('merge_reparam', ['c.py', 'a.pth', 'DIR'], "dst: 'DIR' is a folder: name a file"),
        ('make_sample_data', ['--out', 'FILE'], "--out: 'FILE' cannot be a folder: "),
        ('analysis/analyze_logs', ['run', '--out', 'DIR'], "--out: 'DIR' is a folder: name a"),
        (
            'analysis/browse_dataset',
            ['c.py', '--output-dir', 'FILE'],
            "'FILE' cannot be a folder: ",
        ),
        (
            'analysis/vis_attention',
            ['c.py', 'a.png', '--out', 'FILE'],
            "'FILE' cannot be a folder:",
        ),
        ('analysis/confusion_matrix', ['c.py', 'a.pkl', 'FILE'], "'FILE' cannot be a folder: "),
        (
            'analysis/confusion_matrix',
            ['c.py', 'a.pkl', 'DIR', '--score-thr', '-1'],
            "--score-thr: '-1' is no number from 0 to 1",
        ),
        (
            'analysis/confusion_matrix',
            ['c.py', 'a.pkl', 'DIR', '--tp-iou-thr', '50'],
            "--tp-iou-thr: '50' is no number from 0 to 1",
        ),
        ('benchmarks/bench_ops', ['--out', 'DIR'], "--out: 'DIR' is a folder: name a file"),
    ],
)
def test_wrong_values(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tool: str,
    argv: list[str],
    message: str,
) -> None:
    """They are said when the arguments are read, in the last line."""
    file, folder = tmp_path / 'file', tmp_path / 'folder'
    file.touch()
    folder.mkdir()
    path = ROOT / 'tools' / f'{tool}.py'
    monkeypatch.syspath_prepend(path.parent)

    def filled(text: str) -> str:
        return text.replace('FILE', str(file)).replace('DIR', str(folder))

    with pytest.raises(SystemExit):
        runpy.run_path(str(path))['parse_args']([filled(word) for word in argv])
    assert filled(message) in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize('many', [False, True])
def test_size_and_its_old_name(many: bool, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_size_arguments(parser, 'of images', many)
    assert parser.parse_args([]).size is None
    expected = [(64, 96)] if many else (64, 96)
    assert parser.parse_args(['--size', '64x96']).size == expected
    assert capsys.readouterr().err == ''
    assert parser.parse_args(['--shape', '64', '96']).size == expected
    assert capsys.readouterr().err == '--shape is --size 64x96 now\n'
    with pytest.raises(SystemExit):
        parser.parse_args(['--shape', '64', '0'])
    assert "argument --shape: '64x0' is not HEIGHTxWIDTH" in capsys.readouterr().err
