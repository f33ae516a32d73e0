"""gpu_check.sh says in one line what a machine lacks, and sums up a run."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from xml.etree import ElementTree

import pytest
from packaging.requirements import Requirement

SCRIPT = Path(__file__).parents[2] / 'tools' / 'gpu_check.sh'

# Stands for a Python with a GPU: the steps are not run, but leave what real ones leave.
FAKE_PYTHON = """\
#!/usr/bin/env bash
case "$*" in
-c*get_device_capability*) echo "$CAPABILITY" ;;
*get_path*) echo "$SCRIPTS" ;;
*setuptools.__version__*) exit "$SETUPTOOLS_STATUS" ;;
-c*) ;;
setup.py*) echo "$BUILD_OUTPUT"; exit "$BUILD_STATUS" ;;
'-m mmlocalattn.check'*) echo 'a table of operators'; exit "$CHECK_STATUS" ;;
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
    scripts = tmp_path / 'scripts'
    scripts.mkdir()
    (scripts / 'ninja').touch(0o755)
    return dict(
        PYTHON=str(python),
        REAL_PYTHON=sys.executable,
        FAKE_TORCH=str(tmp_path),
        PATH='/usr/bin:/bin',  # where a virtual environment that is not activated is not
        SCRIPTS=str(scripts),
        SETUPTOOLS_STATUS='0',
        CAPABILITY='9.0',
        BUILD_OUTPUT='',
        BUILD_STATUS='0',
        CHECK_STATUS='0',
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
        (dict(SETUPTOOLS_STATUS='1'), 'setuptools is too old, 64 is needed: '),
        (dict(TESTS_STATUS='1'), 'failed: tests, see'),
        (dict(CHECK_STATUS='1', TESTS_STATUS='1'), 'failed: check tests, see'),
    ],
)
def test_error(
    change: dict[str, str], message: str, machine: dict[str, str], tmp_path: Path
) -> None:
    result = run(tmp_path, **machine | change)
    assert result.returncode == 1
    assert f'[gpu_check] error: {message}' in result.stderr.splitlines()[-1]
    assert change.get('BUILD_OUTPUT', '') in result.stderr


def test_no_ninja(machine: dict[str, str], tmp_path: Path) -> None:
    few = tmp_path / 'few'
    few.mkdir()
    for program in ('bash', 'env', 'dirname', 'realpath'):
        (few / program).symlink_to(shutil.which(program))
    result = run(tmp_path, **machine | dict(PATH=str(few), SCRIPTS='/nowhere'))
    assert '[gpu_check] error: there is no program ninja' in result.stderr.splitlines()[-1]


def test_summary(machine: dict[str, str], tmp_path: Path) -> None:
    result = run(tmp_path, **machine)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-6:-4] == ['a table', 'a GPU  9.0  2.11.0  13.0']
    assert '7 tests, 0 failures, 0 errors, 0 skipped' in result.stdout
    check = json.loads((tmp_path / 'out' / 'check.json').read_text())
    assert check['gpu'] == 'a GPU'
    assert check['tests'] == dict(tests=7, failures=0, errors=0, skipped=0)
    assert {name: step['status'] for name, step in check['steps'].items()} == dict(
        build=0, check=0, tests=0, benchmark=0
    )
    assert 'a table of operators' in result.stdout


# What is imported with torch.cuda then finds a GPU, until CUDA is called.
PRETEND_GPU = """\
import importlib.machinery, sys

class Pretend:
    def find_spec(self, name, path=None, target=None):
        if name == 'torch.cuda':
            sys.meta_path.remove(self)
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            run = spec.loader.exec_module
            def exec_module(module):
                run(module)
                module.is_available = lambda: True
                module.get_device_capability = lambda device=None: (9, 0)
                module.get_device_name = lambda device=None: 'a GPU'
            spec.loader.exec_module = exec_module
            return spec

sys.meta_path.insert(0, Pretend())
"""
# The kernels are not built: that takes minutes, and a CI step of its own.
BUILDS_NOTHING = """\
#!/bin/sh
case "$*" in setup.py*) command -v ninja; exit ;; esac
exec {python} "$@"
"""


def distributions(names: list[str]) -> set[str]:
    """Distributions and all that they need."""
    found: set[str] = set()
    while names:
        name = names.pop()
        if name not in found:
            found.add(name)
            needs = map(Requirement, distribution(name).requires or ())
            names += [n.name for n in needs if n.marker is None or n.marker.evaluate({'extra': ''})]
    return found


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """An interpreter with what the script asks for and nothing else, that pretends a GPU."""
    venv = tmp_path / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', venv], check=True)
    (site,) = venv.glob('lib/python3*/site-packages')
    for name in distributions(['torch', 'numpy', 'setuptools', 'ninja', 'pytest', 'rich']):
        dist = distribution(name)
        for top in {file.parts[0] for file in dist.files if file.parts[0] not in ('..', '')}:
            if top != '__pycache__' and not (site / top).exists():
                (site / top).symlink_to(dist.locate_file(top))
    (venv / 'bin' / 'ninja').symlink_to(distribution('ninja').locate_file('../../../bin/ninja'))
    (site / 'pretend_gpu.py').write_text(PRETEND_GPU)
    (site / 'pretend_gpu.pth').write_text('import pretend_gpu\n')
    python = tmp_path / 'bare_python'
    python.write_text(BUILDS_NOTHING.format(python=venv / 'bin' / 'python'))
    python.chmod(0o755)
    return python


def test_bare_virtual_environment(bare_python: Path, tmp_path: Path) -> None:
    """Without the mm packages every step goes as far as the first call of CUDA."""
    env = dict(PATH='/usr/bin:/bin', PYTHONPATH='', PYTEST_ADDOPTS='-x --tb=line')
    result = run(tmp_path, PYTHON=str(bare_python), **env)
    out = tmp_path / 'out'
    assert result.returncode == 1
    logs = {name: (out / f'{name}.log').read_text() for name in ('check', 'tests', 'benchmark')}
    assert result.stderr.splitlines()[-1].startswith(
        '[gpu_check] error: failed: check tests benchmark'
    ), logs
    ninja = Path((out / 'build.log').read_text().strip())
    assert ninja == tmp_path / 'venv' / 'bin' / 'ninja'
    suite = next(ElementTree.parse(out / 'tests.xml').iter('testsuite'))
    assert (suite.get('errors'), suite.get('failures')) == ('0', '1'), logs['tests']
    collected, deselected = map(
        int, re.search(r'collected (\d+) items / (\d+) deselected', logs['tests']).groups()
    )
    assert collected - deselected > 500
    for log in logs.values():
        assert 'ModuleNotFoundError' not in log
        assert re.search('CUDA|NVIDIA', log), log
