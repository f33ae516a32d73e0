"""Files are written whole or not at all."""

import json
from pathlib import Path

import pytest

from mmlocalattn.files import write_json


def test_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / 'out.json'
    with pytest.raises(TypeError):
        write_json(path, {'object': object()})
    assert list(tmp_path.iterdir()) == []
    write_json(path, {'a': 1})
    assert json.loads(path.read_text()) == {'a': 1}
    assert list(tmp_path.iterdir()) == [path]
