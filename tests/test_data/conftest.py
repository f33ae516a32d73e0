"""What the tests of folders share."""

from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty folder of a user; what is made of it lies beside."""
    folder = tmp_path / 'mine'
    folder.mkdir()
    return folder
