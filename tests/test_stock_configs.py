"""The backbone in stock mmdet and mmseg configs: a fresh process each, no custom_imports."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
MMSEG = Path(find_spec('mmseg').origin).parent / '.mim' / 'configs'
BACKBONE = """dict(
    _delete_=True, type='mmlocalattn.SSViT',
    arch=dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 3, 4),
              mlp_ratios=(2, 2, 2, 2)))"""
STOCK = {
    'maskrcnn': (
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        'neck=dict(in_channels=[8, 16, 24, 32]), train_cfg=dict(rcnn=dict(sampler=dict(num=16)))',
    ),
    'retinanet': (
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'neck=dict(in_channels=[8, 16, 24, 32])',
    ),
    'upernet': (
        # Not mmseg::, which onedl's mmengine does not find.
        str(MMSEG / 'upernet' / 'upernet_r50_4xb4-80k_ade20k-512x512.py'),
        'data_preprocessor=dict(size=(64, 64)), pretrained=None, '
        'decode_head=dict(in_channels=[8, 16, 24, 32]), auxiliary_head=dict(in_channels=24)',
    ),
}
SCRIPT = """
import multiprocessing
import sys

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample


def inputs(scope):
    if scope == 'mmdet':
        return demo_mm_inputs(2, (3, 64, 64), [3, 3], num_classes=4, with_mask=True)
    labels = PixelData(data=torch.randint(5, (1, 64, 64)))
    sample = SegDataSample(gt_sem_seg=labels, metainfo=dict(img_shape=(64, 64)))
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    return dict(inputs=images, data_samples=[sample, sample])


def check(path):
    cfg = Config.fromfile(path)
    assert 'custom_imports' not in cfg
    init_default_scope(cfg.default_scope)
    assert not any(name.startswith('mmlocalattn') for name in sys.modules)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    data = model.data_preprocessor(inputs(cfg.default_scope), True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    assert torch.isfinite(loss)
    return type(model.backbone).__module__


# A process for each config: what one of them imports must not help the next.
with multiprocessing.get_context('fork').Pool(1, maxtasksperchild=1) as pool:
    print(*pool.map(check, sys.argv[1:], chunksize=1))
"""


def test_builds_and_gives_a_loss(tmp_path: Path) -> None:
    configs = []
    for name, (base, rest) in STOCK.items():
        configs.append(tmp_path / f'{name}.py')
        configs[-1].write_text(f'_base_ = {base!r}\nmodel = dict(backbone={BACKBONE}, {rest})\n')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', SCRIPT, *configs],
        env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].split() == 3 * ['mmlocalattn.backbones.ssvit']
