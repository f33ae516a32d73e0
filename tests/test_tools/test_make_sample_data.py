"""tools/make_sample_data.py: its arguments reach the generator, and it says what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_data

TOOL = tiny_data.load_tool('make_sample_data')


def test_command_line(tmp_path: Path) -> None:
    """The script runs on its own, with the default digits."""
    script = str(tiny_data.ROOT / 'tools' / 'make_sample_data.py')
    args = [sys.executable, script, '--num-train', '1', '--num-val', '1', '--out', 'cards']
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert 'cards: 1 training and 1 validation images' in done.stdout
    coco = json.loads((tmp_path / 'cards' / 'annotations' / 'instances_train.json').read_text())
    assert [category['name'] for category in coco['categories']] == ['0', '1', '2', '3']


def test_every_argument(tmp_path: Path) -> None:
    out = tmp_path / 'cards'
    argv = ['--out', str(out), '--num-train', '2', '--num-val', '1', '--size', '96']
    TOOL.main([*argv, '--digits', '7', '4', '--seed', '1'])
    path = out / 'annotations' / 'instances_train.json'
    first = json.loads(path.read_text())
    assert [(image['height'], image['width']) for image in first['images']] == [(96, 96)] * 2
    assert [category['name'] for category in first['categories']] == ['7', '4']
    with pytest.raises(SystemExit, match=r'error: .*cards exists; replace=True or --force'):
        TOOL.main(argv)
    TOOL.main([*argv, '--digits', '7', '4', '--seed', '2', '--force'])
    assert json.loads(path.read_text())['annotations'] != first['annotations']


def test_one_line_errors(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match='error: size must be at least 96, got 40'):
        TOOL.main(['--out', str(tmp_path / 'cards'), '--size', '40'])


def test_trees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'trees'
    with pytest.raises(SystemExit, match=r"error: .*nothing.whl'"):
        TOOL.main(['trees', '--out', str(out), '--wheel', str(tmp_path / 'nothing.whl')])
    assert not out.exists()
    with pytest.raises(SystemExit):
        TOOL.main(['trees', '--seed', '1'])
    assert '--seed is of digit_cards, not of trees' in capsys.readouterr().err
