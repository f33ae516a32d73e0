"""Trains a tiny detector in one, two and four processes, and in two of which one fails.

    python many_processes.py FOLDER

All are forks of this process, so that the stack is imported once. FOLDER gets the work dirs, the
logs of the processes, and ``ended.json``: of each run when its processes ended, and how.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

import cv2
import loss_hook  # noqa: F401  (registers it)
import mmdet.models  # noqa: F401
import numpy as np
import torch
from killing.training import load_train, start_child
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

IMAGES, SIDE = 12, 32
BATCH = 8  # images of all processes: the second batch of an epoch is half of one

CONFIG = """
default_scope = 'mmdet'
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape'))]
train_dataloader = dict(
    batch_size={batch}, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CocoDataset', data_root='.', ann_file='coco.json',
                 data_prefix=dict(img=''), metainfo=dict(classes=('a', 'b')), pipeline=pipeline))
norm_cfg = dict(type='SyncBN')
model = dict(
    type='FCOS',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[128.0] * 3, std=[64.0] * 3),
    backbone=dict(
        type='mmlocalattn.SSViT', out_indices=(0, 1), norm_cfg=norm_cfg, with_cp={with_cp},
        arch=dict(embed_dims=[8, 8], depths=[1, 1], num_heads=[1, 1], mlp_ratios=[2, 2])),
    neck=dict(type='FPN', in_channels=[8, 8], out_channels=8, num_outs=2),
    bbox_head=dict(
        type='FCOSHead', num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1,
        strides=[4, 8], regress_ranges=((-1, 16), (16, 1e8)), norm_cfg=norm_cfg))
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(accumulative_counts=2, optimizer=dict(type='SGD', lr=0.05))
randomness = dict(seed=0)
custom_hooks = [dict(type='LossHook'){other_hook}]
"""


@HOOKS.register_module()
class FailHook(Hook):
    """Fails in the second process at the third iteration."""

    def before_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        if runner.iter == 2 and runner.rank == 1:
            raise ZeroDivisionError('of the second process')


def write_data() -> None:
    """Pictures of which every second one is empty: all that the second of two processes gets."""
    chance = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(IMAGES):
        name = f'{number}.png'
        cv2.imwrite(name, chance.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        images.append(dict(id=number, file_name=name, width=SIDE, height=SIDE))
        if number % 2 == 0:
            box = [4 + number, 6, 10 + number, 16]
            entry = dict(id=number + 1, image_id=number, category_id=number // 2 % 2, bbox=box)
            annotations.append({**entry, 'area': box[2] * box[3], 'iscrowd': 0})
    categories = [dict(id=0, name='a'), dict(id=1, name='b')]
    content = dict(images=images, annotations=annotations, categories=categories)
    Path('coco.json').write_text(json.dumps(content))


def run(name: str, processes: int, with_cp: bool = True, other_hook: str = '') -> dict:
    """Train in so many processes.

    Returns:
        When each process ended, in seconds after the first one did, and its exit status.
    """
    batch = BATCH // processes
    text = CONFIG.format(batch=batch, with_cp=with_cp, other_hook=other_hook)
    Path(f'{name}.py').write_text(text)
    argv = [f'{name}.py', '--work-dir', name]
    if processes > 1:
        argv += ['--launcher', 'pytorch']
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    ranks = {}
    for rank in range(processes):
        os.environ.update(RANK=f'{rank}', LOCAL_RANK=f'{rank}', WORLD_SIZE=f'{processes}')
        os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=f'{port}')
        pid = start_child(lambda: load_train().main(argv), Path(f'{name}.{rank}.log'))
        ranks[pid] = rank
    ended: dict[int, tuple[float, int]] = {}
    while len(ended) < processes:
        pid, status = os.wait()
        ended[ranks[pid]] = (time.monotonic(), os.waitstatus_to_exitcode(status))
    first = min(moment for moment, _ in ended.values())
    return {rank: (moment - first, status) for rank, (moment, status) in ended.items()}


def main() -> None:
    os.chdir(sys.argv[1])
    torch.set_num_threads(1)
    write_data()
    ended = {
        'one': run('one', 1, with_cp=False),
        'two': run('two', 2),
        'four': run('four', 4),
        'fails': run('fails', 2, other_hook=", dict(type='FailHook')"),
    }
    Path('ended.json').write_text(json.dumps(ended))


if __name__ == '__main__':
    main()
