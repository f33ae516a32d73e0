"""The zone in which strangers' files are opened, and a config with data to open them beside."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_data
from zone import Zone


@pytest.fixture(scope='session')
def zone() -> Iterator[Zone]:
    zone = Zone()
    yield zone
    zone.close()


@pytest.fixture(scope='session')
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, and ``c.py``, a detector for them."""
    folder = tmp_path_factory.mktemp('home')
    tiny_data.make_data(folder)
    tiny_data.write_config(folder / 'c.py', tiny_data.DETECTION, folder)
    return folder
