"""The kernels of one build, compiled for the CPU."""

import os
import shutil

import pytest
from emulator import CXX, Emulator


@pytest.fixture(scope='session')
def emulator() -> Emulator:
    """Compiled on first use. MMLOCALATTN_EMULATION names the build, see emulator.py."""
    if shutil.which(CXX) is None:
        pytest.skip(f'there is no {CXX} to compile the kernels for the CPU')
    return Emulator(os.getenv('MMLOCALATTN_EMULATION', 'races'))
