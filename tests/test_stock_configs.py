"""The backbone in stock mmdet and mmseg configs: a fresh process each, no custom_imports."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
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
        'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
        'data_preprocessor=dict(size=(64, 64)), pretrained=None, '
        'decode_head=dict(in_channels=[8, 16, 24, 32]), auxiliary_head=dict(in_channels=24)',
    ),
}
SCRIPT = """
import sys
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData

torch.set_num_threads(1)
cfg = Config.fromfile(sys.argv[1])
assert 'custom_imports' not in cfg
init_default_scope(cfg.default_scope)
assert not any(name.startswith('mmlocalattn') for name in sys.modules)
model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
if cfg.default_scope == 'mmdet':
    from mmdet.testing import demo_mm_inputs
    batch = demo_mm_inputs(2, (3, 64, 64), [3, 3], num_classes=4, with_mask=True)
else:
    from mmseg.structures import SegDataSample
    labels = PixelData(data=torch.randint(5, (1, 64, 64)))
    sample = SegDataSample(gt_sem_seg=labels, metainfo=dict(img_shape=(64, 64)))
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    batch = dict(inputs=images, data_samples=[sample, sample])
loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
assert torch.isfinite(loss)
print(type(model.backbone).__module__)
"""


def test_builds_and_gives_a_loss(tmp_path: Path) -> None:
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    processes = {}
    for name, (base, rest) in STOCK.items():
        config = tmp_path / f'{name}.py'
        config.write_text(f'_base_ = {base!r}\nmodel = dict(backbone={BACKBONE}, {rest})\n')
        processes[name] = subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-c', SCRIPT, config],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    for name, process in processes.items():
        printed, errors = process.communicate()
        assert process.returncode == 0, f'{name}: {errors[-2000:]}'
        assert printed.splitlines()[-1] == 'mmlocalattn.backbones.ssvit'
