"""Configs of the toolboxes learn a folder by one command, as they stand."""

from pathlib import Path

import numpy as np
import pytest
import tiny_data
from tiny_data import data, quick  # noqa: F401

from mmlocalattn.training import read_checkpoint, read_history

TRAIN = tiny_data.load_tool('train')
pytestmark = pytest.mark.usefixtures('quick')

RANDOM_WEIGHTS = 'model.backbone.init_cfg=None'
STOCK = {  # config, arguments, entries that are changed, what is measured
    'RTMDet-Ins': (
        'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
        [],
        [RANDOM_WEIGHTS, 'model.test_cfg.score_thr=0'],  # so that it finds something at once
        'coco/segm_mAP',
    ),
    'Deformable DETR': (
        'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        [],
        [RANDOM_WEIGHTS],
        'coco/bbox_mAP',
    ),
    'SegFormer': (
        'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        [],
        [RANDOM_WEIGHTS],
        'mIoU',
    ),
    'RetinaNet with SSViT': (
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        ['--backbone', 'ssvit_t'],
        ['model.test_cfg.score_thr=0'],
        'coco/bbox_mAP',
    ),
}


@pytest.mark.parametrize('name', STOCK)
def test_one_command(
    name: str,
    tmp_path: Path,
    data: Path,  # noqa: F811
) -> None:
    """One epoch or two iterations, for time; all else is the config's, or follows from the data."""
    config, arguments, entries, score = STOCK[name]
    argv = [config, *arguments, '--data', data, '--work-dir', tmp_path / 'run', '--cfg-options']
    argv += [f'train_cfg.{"max_iters=2" if score == "mIoU" else "max_epochs=1"}', *entries]
    argv += [f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')]
    argv += ['train_cfg.val_interval=1', 'default_hooks.logger.interval=1']
    tiny_data.run(TRAIN, *argv)
    history = read_history(tmp_path / 'run')
    assert all(np.isfinite(row['loss']) for row in history.train.values())
    scores = history.val[max(history.val)]
    assert {score, f'{score}_low', f'{score}_high'} <= set(scores)
    trained = read_checkpoint((tmp_path / 'run' / 'last_checkpoint').read_text())
    assert len(trained['meta']['dataset_meta']['classes']) == (3 if score == 'mIoU' else 2)
