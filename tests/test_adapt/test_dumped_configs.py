"""Swapped configs with layer decay, trained by the toolboxes' own programs in fresh processes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_data import CLASSIFICATION, DETECTION, SEGMENTATION, data, quick, write_config  # noqa: F401

from mmlocalattn.adapt import swap_backbone
from mmlocalattn.training import load_config

ROOT = Path(__file__).parents[2]
NARROW = dict(
    embed_dims=(16, 24, 32, 40), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), mlp_ratios=(2,) * 4
)
# mmdet's and mmseg's constructor, which the swap replaces; mmpretrain has none of that name.
THEIRS = dict(
    constructor='LearningRateDecayOptimizerConstructor',
    paramwise_cfg=dict(_delete_=True, decay_rate=0.5, decay_type='layer_wise', num_layers=6),
)
OURS = dict(
    constructor='mmlocalattn.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.5),
)


@pytest.mark.parametrize(
    ('package', 'text', 'layer_decay'),
    [
        ('mmdet', DETECTION, THEIRS),
        ('mmseg', SEGMENTATION, THEIRS),
        ('mmpretrain', CLASSIFICATION, OURS),
    ],
)
def test_the_toolbox_trains_one_step(
    package: str,
    text: str,
    layer_decay: dict,
    data: Path,  # noqa: F811
    quick: None,  # noqa: F811
    tmp_path: Path,
) -> None:
    wrapper = dict(layer_decay, type='OptimWrapper', loss_scale=None)
    source = write_config(tmp_path / 'source.py', text, data, f'optim_wrapper = {wrapper}')
    cfg = swap_backbone(load_config(source), 'nat_m', arch=NARROW)
    cfg.optim_wrapper.pop('loss_scale')
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=1)
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=1)
    for split in ('val', 'test'):
        cfg[f'{split}_cfg'] = cfg[f'{split}_dataloader'] = cfg[f'{split}_evaluator'] = None
    cfg.dump(tmp_path / 'dumped.py')
    assert 'custom_imports' not in (tmp_path / 'dumped.py').read_text()

    program = Path(importlib.util.find_spec(package).origin).parent / '.mim/tools/train.py'
    search = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    run = subprocess.run(
        [sys.executable, program, 'dumped.py', '--work-dir', 'out'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': search, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    checkpoint = torch.load(tmp_path / 'out' / 'iter_1.pth', weights_only=False)
    groups = checkpoint['optimizer']['param_groups']
    rates = {group['param_name']: group['lr_scale'] for group in groups}
    assert rates['backbone.stem.norm.weight'] == 0.5**5
