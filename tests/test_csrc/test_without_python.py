"""The built extension needs no library of Python."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest


@pytest.fixture(scope='module')
def extension() -> str:
    spec = find_spec('mmlocalattn._ext')
    if spec is None:
        pytest.skip('the extension is not built')
    if sys.platform != 'linux':
        pytest.skip(f'libraries of {sys.platform} are not ELF files, which readelf reads')
    if shutil.which('readelf') is None:
        pytest.skip('there is no readelf (Debian, Ubuntu: apt install binutils)')
    return spec.origin


def readelf(option: str, path: str) -> str:
    command = ['readelf', '--wide', option, path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_libraries(extension: str) -> None:
    needed = re.findall(r'\(NEEDED\).*\[(.+)\]', readelf('--dynamic', extension))
    assert 'libtorch_cpu.so' in needed
    assert not [name for name in needed if 'python' in name]


def test_symbols(extension: str) -> None:
    found = re.findall(r'(\w+) +\w+ +UND (_?Py\w+)', readelf('--dyn-syms', extension))
    assert found == [('WEAK', 'PyModule_Create2')]
