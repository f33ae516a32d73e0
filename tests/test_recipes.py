"""Every block of docs/recipes.md trains, and does what it is for."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmlocalattn.adapt.nodes import dicts
from mmlocalattn.training import build_runner, read_checkpoint

sys.path.insert(0, str(Path(__file__).parent / 'test_tools'))
import tiny_data
from tiny_data import ROOT, data, quick  # noqa: F401

PAGE = ROOT / 'docs' / 'recipes.md'
BLOCKS = re.findall(r'^```python\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL)
TRAIN = tiny_data.load_tool('train')
pytestmark = pytest.mark.usefixtures('quick')


def last(folder: Path) -> dict:
    return read_checkpoint((folder / 'last_checkpoint').read_text())


def wrote(pattern: str) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        assert list(folder.glob(pattern)), [str(file) for file in folder.rglob('*')]

    return check


def averages(folder: Path) -> None:
    content = last(folder)
    average, weights = content['state_dict'], content['ema_state_dict']
    assert any(not torch.equal(average[name], weights[f'module.{name}']) for name in average)


def accumulates(folder: Path) -> None:
    states = last(folder)['optimizer']['state'].values()
    assert {int(state['step']) for state in states} == {3}  # of nine batches, the last alone


def trains(folder: Path) -> None:
    assert last(folder)['meta']['iter'] == 3


def keeps_the_best(folder: Path) -> None:
    assert {file.name for file in folder.glob('epoch_*.pth')} == {'epoch_2.pth', 'epoch_3.pth'}
    assert list(folder.glob('best_coco_segm_mAP_epoch_*.pth'))


# By what a block has and no other: the epochs to train, a package that is optional, what is seen.
CHECKS: dict[str, tuple[int, str, Callable[[Path], None]]] = {
    'TensorboardVisBackend': (1, 'tensorboard', wrote('*/vis_data/events.out.tfevents*')),
    'WandbVisBackend': (1, 'wandb', wrote('*/vis_data/wandb/offline-run-*')),
    'MLflowVisBackend': (1, 'mlflow', wrote('mlflow.db')),
    'ExponentialMovingAverage': (1, '', averages),
    'StochasticWeightAverage': (3, '', averages),
    'accumulative_counts': (3, '', accumulates),
    'with_cp': (1, '', trains),
    'EarlyStoppingHook': (3, '', keeps_the_best),
}
IN_OTHER_TESTS = ('FSDPStrategy', 'soft_teacher')


def block_of(word: str) -> str:
    (block,) = (block for block in BLOCKS if word in block)
    return block


def write_config(folder: Path, data: Path, block: str) -> Path:  # noqa: F811
    tiny_data.write_config(folder / 'base.py', tiny_data.DETECTION, data)
    config = folder / 'c.py'
    config.write_text(f"_base_ = 'base.py'\n{block}")
    return config


def test_every_block_is_tried() -> None:
    assert sorted(map(block_of, (*CHECKS, *IN_OTHER_TESTS))) == sorted(BLOCKS)


@pytest.mark.parametrize('word', CHECKS)
def test_trains(
    tmp_path: Path,
    data: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    word: str,
) -> None:
    epochs, package, check = CHECKS[word]
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f'{package} is not installed')
    config = write_config(tmp_path, data, block_of(word))
    monkeypatch.chdir(tmp_path)
    options = ['--cfg-options', f'train_cfg.max_epochs={epochs}']
    tiny_data.run(TRAIN, config, '--work-dir', tmp_path, *options)
    check(tmp_path)


def test_fsdp_on_two_processes(tmp_path: Path, data: Path) -> None:  # noqa: F811
    extra = block_of('FSDPStrategy') + '\ntrain_cfg = dict(max_epochs=1, val_interval=1)\n'
    config = write_config(tmp_path, data, extra)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [
            *('bash', ROOT / 'tools' / 'dist_train.sh', config, '2', '--work-dir', tmp_path),
            *('--cfg-options', 'strategy.model_wrapper.device_id=cpu'),
        ],
        env=os.environ
        | dict(
            PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
            PORT=str(port),
            OMP_NUM_THREADS='1',
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    saved = sorted(file.name for file in (tmp_path / 'epoch_1.pth').iterdir())
    assert saved == ['rank0.pth', 'rank1.pth']
    assert 'coco/segm_mAP' in done.stdout


def test_soft_teacher(tmp_path: Path, data: Path) -> None:  # noqa: F811
    text = block_of('soft_teacher').replace('data/coco/', f'{data}/')
    for path in ('instances_train2017', 'image_info_unlabeled2017'):
        text = text.replace(f'annotations/{path}.json', 'coco.json')
    text = text.replace('unlabeled2017/', 'images/') + (
        "labeled.update(data_prefix=dict(img='images/'))\n"
        "metainfo = dict(classes=('dark', 'light'))\n"
        'for part in (labeled, unlabeled):\n'
        '    part.update(metainfo=metainfo)\n'
        'del part\n'
        'model = dict(detector=dict(roi_head=dict(bbox_head=dict(num_classes=2))))\n'
        'train_cfg = dict(max_iters=1, val_interval=5)\n'
        'train_dataloader.update(num_workers=0)\n'
        'default_hooks = dict(checkpoint=dict(interval=1))\n'
        'val_dataloader, val_evaluator, val_cfg = None, None, None\n'
        'test_dataloader, test_evaluator, test_cfg = None, None, None\n'
    )
    (tmp_path / 'c.py').write_text(text)
    argv = [str(tmp_path / 'c.py'), '--work-dir', str(tmp_path), '--backbone', 'ssvit_t']
    cfg = TRAIN.build_config(TRAIN.parse_args(argv))
    for step in dicts(cfg.train_dataloader):
        if step.get('type') == 'RandomResize':
            step['scale'] = [(64, 64), (64, 64)]
    build_runner(cfg).train()
    names = last(tmp_path)['state_dict']
    of_ours = {name.partition('.')[0] for name in names if 'backbone.stages' in name}
    assert of_ours == {'student', 'teacher'}
