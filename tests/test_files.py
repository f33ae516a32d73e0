"""Files and folders are written whole or not at all."""

import json
from pathlib import Path

import pytest

from mmlocalattn.files import whole_folder, write_json


def test_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / 'out.json'
    with pytest.raises(TypeError):
        write_json(path, {'object': object()})
    assert list(tmp_path.iterdir()) == []
    write_json(path, {'a': 1})
    assert json.loads(path.read_text()) == {'a': 1}
    assert list(tmp_path.iterdir()) == [path]


def test_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / 'deep' / 'folder'
    with pytest.raises(FileNotFoundError), whole_folder(folder, replace=False) as new:
        (new / 'none' / 'half').touch()
    assert list(folder.parent.iterdir()) == []
    with whole_folder(folder, replace=False) as new:
        (new / 'first').touch()
        assert not folder.exists()
    with pytest.raises(OSError, match='Directory not empty'), whole_folder(folder, False) as new:
        (new / 'second').touch()
    assert [path.name for path in folder.iterdir()] == ['first']
    with whole_folder(folder, replace=True) as new:
        (new / 'second').touch()
    assert [path.name for path in folder.iterdir()] == ['second']
    assert list(folder.parent.iterdir()) == [folder]
