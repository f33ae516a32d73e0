"""gpu_check.sh says in one line what a machine lacks, and sums up a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'tools' / 'gpu_check.sh'

# Stands for a Python with a GPU: the steps are not run, but leave what real ones leave.
FAKE_PYTHON = """\
#!/usr/bin/env bash
case "$*" in
-c*get_device_capability*) echo "$CAPABILITY" ;;
-c*) ;;
setup.py*) echo "$BUILD_OUTPUT"; exit "$BUILD_STATUS" ;;
'-m pytest'*)
    for argument; do
        case $argument in --junitxml=*) echo "$JUNIT" >"${argument#*=}" ;; esac
    done
    exit "$TESTS_STATUS" ;;
tools/benchmarks/bench_ops.py*) echo 'a table' ;;
*) PYTHONPATH=$FAKE_TORCH exec "$REAL_PYTHON" "$@" ;;
esac
"""
FAKE_TORCH = """\
__version__ = '2.11.0'
class version: cuda = '13.0'
class cuda:
    get_device_name = staticmethod(lambda: 'a GPU')
    get_device_capability = staticmethod(lambda: (9, 0))
"""


def run(folder: Path, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ['bash', SCRIPT, folder / 'out'], env=os.environ | env, capture_output=True, text=True
    )


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """Environment in which the script finds a GPU and everything works."""
    python = tmp_path / 'python'
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    (tmp_path / 'torch.py').write_text(FAKE_TORCH)
    return dict(
        PYTHON=str(python),
        REAL_PYTHON=sys.executable,
        FAKE_TORCH=str(tmp_path),
        CAPABILITY='9.0',
        BUILD_OUTPUT='',
        BUILD_STATUS='0',
        TESTS_STATUS='0',
        JUNIT='<s><testsuite tests="7" failures="0" errors="0" skipped="0"/></s>',
    )


def test_no_gpu(tmp_path: Path) -> None:
    result = run(tmp_path, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='')
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith('[gpu_check] error: torch sees no GPU')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(PYTHON='no-such-python'), 'there is no no-such-python; name one with torch'),
        (dict(PYTHON='false'), 'false has no torch: false -m pip install torch'),
        (dict(CAPABILITY='7.5'), 'the GPU has compute capability 7.5, the kernels need 8.0'),
        (dict(BUILD_OUTPUT='there is no nvcc', BUILD_STATUS='1'), 'the kernels do not build'),
        (dict(TESTS_STATUS='1'), 'failed: tests'),
    ],
)
def test_error(
    change: dict[str, str], message: str, machine: dict[str, str], tmp_path: Path
) -> None:
    result = run(tmp_path, **machine | change)
    assert result.returncode == 1
    assert f'[gpu_check] error: {message}' in result.stderr.splitlines()[-1]
    assert change.get('BUILD_OUTPUT', '') in result.stderr


def test_summary(machine: dict[str, str], tmp_path: Path) -> None:
    result = run(tmp_path, **machine)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-5:-3] == ['a table', 'a GPU  9.0  2.11.0  13.0']
    assert '7 tests, 0 failures, 0 errors, 0 skipped' in result.stdout
    check = json.loads((tmp_path / 'out' / 'check.json').read_text())
    assert check['gpu'] == 'a GPU'
    assert check['tests'] == dict(tests=7, failures=0, errors=0, skipped=0)
    assert [step['status'] for step in check['steps'].values()] == [0, 0, 0]
