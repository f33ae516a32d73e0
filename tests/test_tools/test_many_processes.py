"""A detector in one, two and four processes, of which one may get nothing to find, or fail.

Everything at once: SyncBN on a CPU, batches that end an epoch early, accumulated gradients, and
activations that are computed twice. See many_processes.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmlocalattn.training import read_checkpoint

SCRIPT = Path(__file__).with_name('many_processes.py')
ROOT = SCRIPT.parents[2]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('processes')
    paths = [str(path) for path in (ROOT / 'tools' / 'dev', ROOT)]
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def log(folder: Path, name: str) -> str:
    return ''.join(path.read_text()[-3000:] for path in sorted(folder.glob(f'{name}.*.log')))


@pytest.mark.parametrize(('name', 'processes'), [('two', 2), ('four', 4)])
def test_many_equal_one(folder: Path, name: str, processes: int) -> None:
    ended = json.loads((folder / 'ended.json').read_text())
    assert [status for _, status in ended['one'].values()] == [0], log(folder, 'one')
    assert [status for _, status in ended[name].values()] == [0] * processes, log(folder, name)
    one, many = (json.loads((folder / it / 'losses.json').read_text()) for it in ('one', name))
    assert len(one) == 4
    assert one[0] != pytest.approx(one[2], rel=1e-3)  # the same pictures after a step
    assert many == pytest.approx(one, rel=1e-5)
    weights = [read_checkpoint(folder / it / 'epoch_2.pth')['state_dict'] for it in ('one', name)]
    weights = [{key: w for key, w in of.items() if 'running' not in key} for of in weights]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-6)


def test_all_stop_with_one(folder: Path) -> None:
    """Within a minute, and the one that failed says why."""
    ended = json.loads((folder / 'ended.json').read_text())['fails']
    assert ended['1'] == [0.0, 1], log(folder, 'fails')
    seconds, status = ended['0']
    assert status != 0
    assert seconds < 60
    failed = (folder / 'fails.1.log').read_text()
    assert 'Traceback (most recent call last)' in failed
    assert failed.splitlines()[-1].endswith('ZeroDivisionError: of the second process')
