"""The operators keep their contract without the compiled extension too."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_contract_without_ext(request: pytest.FixtureRequest) -> None:
    if request.config.getoption('--without-ext'):
        pytest.skip('this is the run without the extension')
    folder = Path(__file__).parent
    files = [file for file in sorted(folder.glob('test_*.py')) if file != Path(__file__)]
    result = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '--without-ext', '-k', 'not opcheck', *files],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert result.returncode == 0, result.stdout
    passed = re.search(r'(\d+) passed', result.stdout)
    assert passed, result.stdout
    assert int(passed[1]) > 100, result.stdout
