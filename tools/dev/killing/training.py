"""A training of seconds through tools/train.py, in a child, and its weights."""

import importlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

import cv2
import numpy as np
import torch

from killing.moments import Moment, Watch, parts, seconds_since_strike, strike_soon

ROOT = Path(__file__).parents[3]
PICTURES, SIDE = 4, 32  # of each class; pixels

CONFIG = """
default_scope = 'mmpretrain'
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
data = dict(type='CustomDataset', data_root='.', with_label=True, pipeline=pipeline)
train_dataloader = dict(
    batch_size=2, num_workers=0, dataset=data, sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=2, num_workers=0, dataset=data, sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1,))
data_preprocessor = dict(num_classes=2, mean=[128.0] * 3, std=[64.0] * 3, to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmlocalattn.SSViT', out_indices=(3,), drop_path_rate=0.3,
        arch=dict(embed_dims=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1],
                  mlp_ratios=[2, 2, 2, 2])),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=8, topk=(1,)))
train_cfg = dict(by_epoch=True)
val_cfg = dict()
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[1, 2])]
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='auto'))
randomness = dict(seed=5)
"""
RECIPE = ['train_cfg.max_epochs=3', 'train_cfg.val_interval=1', 'train_dataloader.batch_size=2']
"""Which would else be fitted to the number of pictures and to the machine."""


PACKAGES = ('mmcv', 'mmengine', 'mmlocalattn', 'mmpretrain')


def write_data(folder: Path) -> None:
    """A folder of pictures for each of two classes, and the config that learns them."""
    chance = np.random.default_rng(0)
    for name in ('dark', 'light'):
        (folder / 'pictures' / name).mkdir(parents=True)
        for index in range(PICTURES):
            picture = chance.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            picture //= 2 if name == 'dark' else 1
            cv2.imwrite(str(folder / 'pictures' / name / f'{name}{index}.png'), picture)
    (folder / 'c.py').write_text(CONFIG)


def train(folder: Path, work_dir: str, *options: str, moment: Moment | None = None) -> int:
    """Train in a child; returns its exit status, negative for a signal.

    Without a moment, and with ``calls.json`` among the options, the calls in each part are counted
    into that file.
    """
    argv = ['c.py', '--data', 'pictures', '--work-dir', work_dir, '--cfg-options', *RECIPE]
    argv += [option for option in options if option != 'calls.json']
    counted = folder / 'calls.json' if 'calls.json' in options else None
    return in_child(lambda: _train(folder, argv, moment, counted), folder / f'{work_dir}.log')


def in_child(work: Callable[[], None], log: Path) -> int:
    """Run a function in a fork of this process; returns its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(start_child(work, log), 0)[1])


def start_child(work: Callable[[], None], log: Path) -> int:
    """Start a function in a fork of this process, with its output in a file; returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    status = 1
    try:
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _train(folder: Path, argv: Sequence[str], moment: Moment | None, counted: Path | None) -> None:
    tool = load_train()
    os.chdir(folder)
    torch.set_num_threads(1)
    watch = Watch(parts(), moment, strike_soon)
    with no_descriptions():
        if moment or counted:
            sys.setprofile(watch)
        tool.main(argv)
        sys.setprofile(None)
    if counted:
        modules = sorted(name for name in sys.modules if name.partition('.')[0] in PACKAGES)
        counted.write_text(json.dumps(dict(calls=watch.calls, modules=modules)))


@contextmanager
def no_descriptions() -> Iterator[None]:
    """Have nothing described: machine, config, results. That costs more than the training."""
    import mmengine.config.config
    import mmengine.runner.runner
    import yapf.yapflib.yapf_api

    import mmlocalattn.visualisation.training_report as report

    with ExitStack() as patches:
        for module in (mmengine.config.config, yapf.yapflib.yapf_api):  # the latter for onedl's
            patches.enter_context(
                mock.patch.object(module, 'FormatCode', lambda text, **_: (text, True))
            )
        patches.enter_context(mock.patch.object(mmengine.runner.runner, 'collect_env', dict))
        patches.enter_context(mock.patch.object(report, 'register_report'))
        yield


def load_train() -> ModuleType:
    """tools/train.py as a module."""
    spec = importlib.util.spec_from_file_location('tools_train', ROOT / 'tools' / 'train.py')
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count_calls(folder: Path) -> Counter[str]:
    """Train without an end before its time, into ``whole``; the calls in each part."""
    for work_dir in ('first', 'whole'):
        if train(folder, work_dir, 'calls.json') != 0:
            raise SystemExit((folder / f'{work_dir}.log').read_text()[-2000:])
        told = json.loads((folder / 'calls.json').read_text())
        for name in told['modules']:  # once, for all that follow, in which these calls are none
            importlib.import_module(name)
    return Counter(told['calls'])


def kill(folder: Path, work_dir: str, moment: Moment) -> dict:
    """Kill a training at a moment, and resume it.

    Returns:
        ``status`` of the killed one and ``seconds`` that it went on, ``resumed``, the status of the
        other, whether it ``went_on`` from a checkpoint, what is ``differing`` from
        :func:`count_calls`, and the end of the log if something went wrong.
    """
    status = train(folder, work_dir, moment=moment)
    seconds = seconds_since_strike(folder)
    resumed = train(folder, work_dir, '--resume')
    log = (folder / f'{work_dir}.log').read_text()
    differing = [*differing_weights(folder, work_dir), *differing_data(folder, work_dir)]
    shutil.rmtree(folder / work_dir)
    return dict(
        status=status,
        seconds=seconds,
        resumed=resumed,
        went_on='Resuming from ' in log,
        differing=differing,
        log=log[-2000:] if resumed else '',
    )


def differing_weights(folder: Path, work_dir: str) -> list[str]:
    """The names of weights that are not those of the training without an end, bit for bit."""
    whole, other = (_weights(folder / name) for name in ('whole', work_dir))
    if whole.keys() != other.keys():
        return sorted(whole.keys() ^ other.keys())
    return [name for name in whole if not torch.equal(whole[name], other[name])]


def _weights(work_dir: Path) -> dict[str, torch.Tensor]:
    from mmlocalattn.training import last_whole_checkpoint, read_checkpoint

    last = last_whole_checkpoint(str(work_dir))
    return read_checkpoint(last)['state_dict'] if last else {}


def differing_data(folder: Path, work_dir: str) -> list[str]:
    """The names of prepared files that are not those of the training without an end."""
    whole, other = (_prepared(folder / name) for name in ('whole', work_dir))
    return sorted(name for name in {*whole, *other} if whole.get(name) != other.get(name))


def _prepared(work_dir: Path) -> dict[str, str]:
    """The text of each prepared file, without the work dir, and what is left beside them."""
    files = [path for path in work_dir.glob('data/**/*') if path.is_file()]
    texts = {str(path.relative_to(work_dir)): path.read_text() for path in files}
    for name, text in texts.items():
        same = re.sub(r'"fingerprint": "\w+"', '', text)
        texts[name] = same.replace(str(work_dir.resolve()), '')
    return texts | {path.name: '' for path in work_dir.glob('.data.*')}
