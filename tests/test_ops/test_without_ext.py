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
    others = {Path(__file__), folder / 'test_add_op.py'}  # which compiles kernels of its own
    files = [file for file in sorted(folder.glob('test_*.py')) if file not in others]
    # The same with the extension is what calls a reference itself, is traced, or starts a Python,
    # which finds it. What compares kernels would be skipped.
    same = ('opcheck', 'compile', 'reference_is_oracle', 'closed_form', 'read_at_import')
    chosen = ' and '.join(f'not {word}' for word in (*same, 'torch_before', 'kernel_is'))
    result = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '--without-ext', '-k', chosen, *files],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert result.returncode == 0, result.stdout
    passed = re.search(r'(\d+) passed', result.stdout)
    assert passed, result.stdout
    assert int(passed[1]) > 100, result.stdout
