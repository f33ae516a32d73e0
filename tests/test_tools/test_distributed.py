"""Two processes train as one does, and the launch scripts pass on their arguments."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_data
import torch
from tiny_data import ROOT, data, quick  # noqa: F401

from mmlocalattn.training import read_checkpoint

TRAIN = tiny_data.load_tool('train')

# The global batch is four images either way. Batch statistics and random steps are off, because
# they would differ between one batch of four and two of two.
EXTRA = """
randomness = dict(seed=0)
model.update(decode_head=dict(
    in_channels=[16] * 4, channels=16, num_classes=3, norm_cfg=norm_cfg, dropout_ratio=0.0))
model['backbone'].update(drop_path_rate=0.0, norm_eval=True)
train_cfg = dict(max_iters=2, val_interval=9)
custom_imports = dict(imports=['loss_hook'])
custom_hooks = [dict(type='LossHook')]
"""


def test_two_processes_equal_one(tmp_path: Path, data: Path, quick: None) -> None:  # noqa: F811
    here = Path(__file__).parent
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.SEGMENTATION, data, EXTRA)
    one, two = tmp_path / 'one', tmp_path / 'two'
    batch = ['--cfg-options', 'train_dataloader.batch_size=']
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    env = os.environ | dict(
        PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
        PYTHONPATH=str(here),
        PORT=str(port),
        OMP_NUM_THREADS='1',
    )
    script = ['bash', ROOT / 'tools' / 'dist_train.sh', config, '2', '--work-dir', two]
    done = subprocess.run(
        [*script, batch[0], f'{batch[1]}2'], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    tiny_data.run(TRAIN, config, '--work-dir', one, batch[0], f'{batch[1]}4')

    losses = [json.loads((folder / 'losses.json').read_text()) for folder in (one, two)]
    assert len(losses[0]) == 2
    assert losses[0][0] != losses[0][1]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    weights = [read_checkpoint(folder / 'iter_2.pth')['state_dict'] for folder in (one, two)]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-5)


@pytest.fixture
def launchers(tmp_path: Path) -> dict[str, str]:
    """An environment whose ``python`` and ``srun`` print their arguments, one per line."""
    for name in ('python', 'srun'):
        program = tmp_path / name
        program.write_text('#!/bin/sh\nprintf "%s\\n" "$PYTHONPATH" "$@"\n')
        program.chmod(0o755)
    return os.environ | dict(PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')


def launch(env: dict[str, str], script: str, *args: str, **variables: str) -> list[str]:
    command = ['bash', str(ROOT / 'tools' / script), *args]
    done = subprocess.run(command, env=env | variables, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize('name', ['train', 'test'])
def test_dist_scripts(launchers: dict[str, str], name: str) -> None:
    files = ['c.py'] if name == 'train' else ['c.py', 'w.pth']
    nodes = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='host', PORT='123', PYTHONPATH='mine')
    path, *args = launch(
        launchers, f'dist_{name}.sh', *files, '8', '--cfg-options', 'a="[1, 2]"', **nodes
    )
    tools = ROOT / 'tools'
    assert path == f'{tools}/..:mine'
    assert args == [
        '-m',
        'torch.distributed.run',
        '--nnodes=2',
        '--node_rank=1',
        '--master_addr=host',
        '--master_port=123',
        '--nproc_per_node=8',
        f'{tools}/{name}.py',
        *files,
        '--launcher',
        'pytorch',
        '--cfg-options',
        'a="[1, 2]"',
    ]


@pytest.mark.parametrize('name', ['train', 'test'])
def test_slurm_scripts(launchers: dict[str, str], name: str) -> None:
    _, *args = launch(
        launchers,
        f'slurm_{name}.sh',
        'part',
        'job',
        'c.py',
        'x',
        '--a',
        'b c',
        GPUS='4',
        SRUN_ARGS='-q z',
    )
    files = ['c.py', '--work-dir', 'x'] if name == 'train' else ['c.py', 'x']
    assert args[:3] == ['-p', 'part', '--job-name=job']
    assert '--ntasks=4' in args
    assert args[args.index('-q') :] == [
        '-q',
        'z',
        'python',
        '-u',
        f'{ROOT}/tools/{name}.py',
        *files,
        '--launcher',
        'slurm',
        '--a',
        'b c',
    ]


@pytest.mark.parametrize('script', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_scripts_say_how_to_use_them(script: str) -> None:
    command = ['bash', ROOT / 'tools' / f'{script}.sh']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith('usage: ')
