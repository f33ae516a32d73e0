"""tools/train.py and tools/test.py on tiny data: train, test, draw, dump, kill and resume."""

import importlib.util
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_data
import torch
from mmengine.registry import DefaultScope

TOOLS = Path(__file__).parents[2] / 'tools'
EPOCH = 3  # iterations of one pass over the data


def tool(name: str):
    """A tool as a module, so that a test need not start another Python."""
    spec = importlib.util.spec_from_file_location(f'tool_{name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train, evaluate = tool('train').main, tool('test').main


@pytest.fixture(autouse=True)
def one_thread_and_no_default_scope() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('data')
    tiny_data.make_data(root)
    return root


def weights(work_dir: Path) -> dict[str, torch.Tensor]:
    last = (work_dir / 'last_checkpoint').read_text()
    return torch.load(last, weights_only=True)['state_dict']


def run_and_kill(config: str, work_dir: Path, iteration: int) -> None:
    """Train in another process, which gets SIGKILL in its ``iteration``-th iteration."""
    kill = f"custom_hooks=[dict(type='KillHook', iteration={iteration})]\n"
    killed = Path(config).with_name(f'killed_{Path(config).name}')
    killed.write_text(
        Path(config).read_text() + "\ncustom_imports = dict(imports=['kill_hook'])\n" + kill
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(TOOLS.parent)])
    done = subprocess.run(
        [sys.executable, TOOLS / 'train.py', killed, '--work-dir', work_dir],
        env=os.environ | dict(PYTHONPATH=path, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ('text', 'killed_after', 'saved'),
    [
        (tiny_data.DETECTION, 2 * EPOCH - 2, 'epoch_1.pth'),  # in the second epoch
        (tiny_data.SEGMENTATION, 4, 'iter_3.pth'),  # halfway through the second pass
    ],
    ids=['detection', 'segmentation'],
)
def test_resumed_run_equals_uninterrupted_run(
    tmp_path: Path, data: Path, text: str, killed_after: int, saved: str
) -> None:
    config = tiny_data.write_config(tmp_path / 'config.py', text, data, 'randomness = dict(seed=3)')
    train([config, '--work-dir', str(tmp_path / 'whole')])
    run_and_kill(config, tmp_path / 'killed', killed_after)
    assert [file.name for file in (tmp_path / 'killed').glob('*.pth')] == [saved]
    # The resumed run must take the seed, and with it the order of the images, from the checkpoint.
    train(
        [
            config,
            '--work-dir',
            str(tmp_path / 'killed'),
            '--resume',
            '--cfg-options',
            'randomness.seed=4',
        ]
    )
    expected, resumed = weights(tmp_path / 'whole'), weights(tmp_path / 'killed')
    assert expected.keys() == resumed.keys()
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []
