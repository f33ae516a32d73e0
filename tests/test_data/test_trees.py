"""The trees sample data: out of a wheel, cut into tiles, whole or not at all."""

import json
import re
import subprocess
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_data

from mmlocalattn.data import trees
from mmlocalattn.data.folders import read_folder

TOOL = tiny_data.load_tool('make_sample_data')
CROWNS = [(10, 10, 40, 40), (90, 20, 118, 50), (60, 60, 80, 99)]  # left, top, right, bottom


def write_wheel(path: Path, leave_out: str = '') -> Path:
    """A wheel with small photographs of the names that the real one has."""
    rng = np.random.default_rng(0)
    objects = ''.join(
        f'<object><name>Dead</name><bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax>'
        f'<ymax>{bottom}</ymax></bndbox></object>'
        for left, top, right, bottom in CROWNS
    )
    with zipfile.ZipFile(path, 'w') as archive:
        for name in sum(trees.PHOTOGRAPHS.values(), ()):
            _, png = cv2.imencode('.png', rng.integers(0, 255, (100, 199, 3), np.uint8))
            archive.writestr(f'deepforest/data/{name}.png', png.tobytes())
            archive.writestr(f'deepforest/data/{name}.xml', f'<annotation>{objects}</annotation>')
        for name in trees.LICENSES:
            if name != leave_out:
                text = f'the {name} of it'
                archive.writestr(f'deepforest-2.1.0.dist-info/licenses/{name}', text)
    return path


def test_tiles(tmp_path: Path) -> None:
    out = tmp_path / 'trees'
    counts = trees.write_trees(out, tile=100, wheel=write_wheel(tmp_path / 'a.whl'))
    assert counts == {'train': (2, 3), 'test': (6, 9)}
    content = json.loads((out / 'annotations' / 'train.json').read_text())
    assert [(it['width'], it['height']) for it in content['images']] == [(99, 100), (100, 100)]
    boxes = [(it['image_id'], it['bbox'], it['iscrowd']) for it in content['annotations']]
    assert boxes == [
        (1, [10, 10, 30, 30], 0),
        (1, [90, 20, 9, 30], 1),  # less than half of the crown
        (1, [60, 60, 20, 39], 0),
        (2, [0, 20, 19, 30], 0),
    ]
    first, second = (cv2.imread(str(out / 'train' / it['file_name'])) for it in content['images'])
    with zipfile.ZipFile(tmp_path / 'a.whl') as archive:
        png = archive.read(f'deepforest/data/{trees.PHOTOGRAPHS["train"][0]}.png')
    whole = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), whole)
    assert (out / 'LICENSE').read_text() == 'the LICENSE of it'
    assert 'deepforest==2.1.0' in (out / 'SOURCE.txt').read_text()


def test_it_is_a_folder_like_others(tmp_path: Path) -> None:
    out = tmp_path / 'trees'
    trees.write_trees(out, tile=64, wheel=write_wheel(tmp_path / 'a.whl'))
    data = read_folder(str(out), str(tmp_path / 'data'))
    assert (data.source, data.classes, list(data.splits)) == (
        'COCO',
        ('Tree',),
        ['train', 'val', 'test'],
    )
    assert data.splits['test'].annotations == str(out / 'annotations' / 'test.json')
    assert [finding.severity for finding in data.findings if finding.severity == 'error'] == []


@pytest.mark.parametrize(('length', 'borders'), [(100, [0, 100]), (1000, [0, 333, 666, 1000])])
def test_borders(length: int, borders: list[int]) -> None:
    assert trees.tile_borders(length, 400) == borders


def test_bad_wheels(tmp_path: Path) -> None:
    out, wheel = tmp_path / 'trees', tmp_path / 'a.whl'
    wheel.write_bytes(b'<html>')
    with pytest.raises(
        OSError, match=r"a.whl' is not the wheel of deepforest==2.1.0 \(File is not"
    ):
        trees.write_trees(out, wheel=wheel)
    write_wheel(wheel, leave_out='AUTHORS.md')
    with pytest.raises(OSError, match=r'is not the wheel of .*AUTHORS\.md'):
        trees.write_trees(out, wheel=wheel)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.whl']


def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess:
        assert command[1:4] == ['-m', 'pip', 'download']
        error = 'WARNING: slow\nERROR: No matching distribution found for deepforest==2.1.0\n'
        return subprocess.CompletedProcess(command, 1, '', error)

    monkeypatch.setattr(subprocess, 'run', fail)
    line = (
        'pip cannot download deepforest==2.1.0 (No matching distribution found for '
        'deepforest==2.1.0): see the network, or give the file with --wheel'
    )
    with pytest.raises(OSError, match=f'^{re.escape(line)}$'):
        trees.write_trees(tmp_path / 'trees')
    assert not list(tmp_path.iterdir())


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(command: list[str], **_: object) -> subprocess.CompletedProcess:
        write_wheel(Path(command[command.index('--dest') + 1]) / 'deepforest-2.1.0.whl')
        return subprocess.CompletedProcess(command, 0, '', '')

    monkeypatch.setattr(subprocess, 'run', download)
    assert trees.write_trees(tmp_path / 'trees', tile=200)['train'] == (1, 3)


def test_source_and_licence_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, wheel = tmp_path / 'trees', write_wheel(tmp_path / 'a.whl')
    TOOL.main(['trees', '--out', str(out), '--tile', '100', '--wheel', str(wheel)])
    assert capsys.readouterr().out == (
        f'{out}, train: 2 tiles with 3 crowns\n{out}, test: 6 tiles with 9 crowns\n'
        f'{trees.SOURCE}the LICENSE of it'
    )
    assert (out / 'AUTHORS.md').read_text() == 'the AUTHORS.md of it'


def test_arguments(tmp_path: Path) -> None:
    out = tmp_path / 'trees'
    with pytest.raises(ValueError, match='--tile must be from 64 to 1000 pixels, got 10'):
        trees.write_trees(out, tile=10)
    out.mkdir()
    with pytest.raises(ValueError, match='exists; replace=True or --force replaces it'):
        trees.write_trees(out)
    with pytest.raises(ValueError, match='holds no sample data, and is not replaced'):
        trees.write_trees(out, replace=True)
