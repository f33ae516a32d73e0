"""The kernels of one build, compiled for the CPU."""

import os
import shutil
from pathlib import Path

import pytest
from emulator import CXX, Emulator


@pytest.fixture(scope='session')
def emulator() -> Emulator:
    """Compiled on first use. MMLOCALATTN_EMULATION names the build, see emulator.py."""
    if shutil.which(CXX) is None:
        pytest.skip(f'there is no {CXX} to compile the kernels for the CPU')
    return Emulator(os.getenv('MMLOCALATTN_EMULATION', 'races'))


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one process compile and use a build where pytest-xdist runs several."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            build = 'asan' if 'address_sanitizer' in item.name else 'races'
            item.add_marker(pytest.mark.xdist_group(f'cuda_emulation_{build}'))
