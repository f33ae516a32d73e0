"""Files of strangers through the tools: each ends in one line, and nothing else happens.

Every command runs in a child that may take a gigabyte of address space besides what the imports
take, and a minute. It must execute nothing, write nothing outside of its folder, and end with one
line that says which file it is about; annotations and pictures may also be left out, which is said.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import sample_folders
import strange_checkpoints
import strange_data
import strange_files
from zone import Outcome, Zone

pytestmark = pytest.mark.xdist_group('strangers')  # one server for all

MOST_MEGABYTES = 256
"""Of memory that refusing a checkpoint, a config or an exported file may take."""


def check_quiet(folder: Path, outcome: Outcome) -> None:
    """Nothing was executed, written elsewhere or left without an explanation."""
    assert outcome.rc in (0, 1, 2), outcome.err[-2000:]
    assert 'Traceback' not in outcome.err, outcome.err[-2000:]
    assert outcome.executed == []
    assert outcome.written == []
    assert not (folder / 'executed').exists()


def check_refused(folder: Path, outcome: Outcome, name: str) -> None:
    """One line with the name of the file, and no result."""
    check_quiet(folder, outcome)
    assert outcome.rc in (1, 2), outcome.out
    (line,) = (line for line in outcome.err.splitlines() if 'error: ' in line)
    assert name in line
    assert not (folder / 'out.pth').exists()


def refuse(zone: Zone, folder: Path, name: str, content: bytes, tool: str, *argv: object) -> None:
    (folder / name).write_bytes(content)
    outcome = zone.run(folder, tool, *argv)
    check_refused(folder, outcome, name)
    assert outcome.megabytes < MOST_MEGABYTES


@pytest.mark.parametrize('name', strange_checkpoints.FILES)
def test_checkpoints(zone: Zone, tmp_path: Path, name: str) -> None:
    content = strange_checkpoints.FILES[name]()
    argv = ['ssvit', 'bad.pth', 'out.pth']
    refuse(zone, tmp_path, 'bad.pth', content, 'convert_checkpoint', *argv)


@pytest.mark.parametrize('name', strange_checkpoints.FLAX)
def test_checkpoints_of_flax(zone: Zone, tmp_path: Path, name: str) -> None:
    file = 'bad.npz' if 'npz' in name or name == 'objects' else 'bad.msgpack'
    content = strange_checkpoints.FLAX[name]()
    refuse(
        zone, tmp_path, file, content, 'convert_checkpoint', 'qna_vit', file, tmp_path / 'out.pth'
    )


def test_checkpoints_of_models(zone: Zone, home: Path, tmp_path: Path) -> None:
    """Before the model is built; those that are found later are in the tests of its weights."""
    content = strange_checkpoints.FILES['bomb in a tensor']()
    argv = [home / 'c.py', 'bad.pth', home / 'images', '--out-dir', 'seen']
    refuse(zone, tmp_path, 'bad.pth', content, 'image_demo', *argv)


@pytest.mark.parametrize('name', ['a list', 'laughs', 'meta is text', 'runs a command'])
def test_checkpoints_to_resume(zone: Zone, home: Path, tmp_path: Path, name: str) -> None:
    content = strange_checkpoints.FILES[name]()
    refuse(zone, tmp_path, 'bad.pth', content, 'train', home / 'c.py', '--resume', 'bad.pth')


@pytest.mark.parametrize('name', strange_files.CONFIGS)
def test_configs(zone: Zone, tmp_path: Path, name: str) -> None:
    config = strange_files.write_config(tmp_path, strange_files.CONFIGS[name])
    check_refused(tmp_path, zone.run(tmp_path, 'train', config.name), config.name)


@pytest.mark.parametrize('name', strange_files.EXPORTED)
def test_exported_files(zone: Zone, tmp_path: Path, name: str) -> None:
    suffix, make = strange_files.EXPORTED[name]
    file = f'bad.{suffix}'
    refuse(zone, tmp_path, file, make(), 'export', '--show', file)


def test_pictures_to_learn(zone: Zone, tmp_path: Path) -> None:
    """Each is found; the others, and what is a picture under another name, are used."""
    sample_folders.write_class_folders(tmp_path / 'd')
    folder = next(path for path in (tmp_path / 'd').iterdir() if path.is_dir())
    for name, make in strange_data.PICTURES.items():
        (folder / f'{name}.png').write_bytes(make())
    (folder / 'jpeg.png').write_bytes(strange_data.jpeg())
    outcome = zone.run(tmp_path, 'analysis/check_data', 'd', '--out-dir', 'o', '--number', '0')
    check_quiet(tmp_path, outcome)
    for name in strange_data.PICTURES:
        assert f'{name}.png: ' in outcome.out
    assert 'jpeg.png: it is called .png and is a JPEG file' in outcome.out


@pytest.mark.parametrize('name', strange_data.FOLDERS)
def test_folders(zone: Zone, tmp_path: Path, name: str) -> None:
    """Refused, or what cannot be used is listed and left out."""
    write: Callable[[Path], object] = strange_data.FOLDERS[name]
    (tmp_path / 'd').mkdir()
    write(tmp_path / 'd')
    outcome = zone.run(tmp_path, 'analysis/check_data', 'd', '--out-dir', 'o')
    check_quiet(tmp_path, outcome)
    assert str(tmp_path / 'd') in outcome.out + outcome.err
