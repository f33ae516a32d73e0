"""Pure Python configs, whose types are classes and whose scope nobody says, in every tool."""

from pathlib import Path

import cv2
import pytest
import tiny_data
from tiny_data import ROOT, data, quick  # noqa: F401

pytestmark = pytest.mark.usefixtures('quick')

CONFIG = """
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmdet.evaluation import CocoMetric
from mmdet.models import FPN, RetinaHead, RetinaNet
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder
from mmdet.models.losses import FocalLoss, L1Loss
from mmdet.models.task_modules import MaxIoUAssigner, PseudoSampler
from mmengine.dataset import DefaultSampler
from mmengine.optim import MultiStepLR, OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop
from torch.optim import SGD

from mmlocalattn.backbones.ssvit import SSViT

default_scope = None
model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor, mean=[0, 0, 0], std=[255, 255, 255],
                           bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(
        type=SSViT, output_norm=True,
        arch=dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_heads=[1, 2, 3, 4],
                  mlp_ratios=[2, 2, 2, 2])),
    neck=dict(type=FPN, in_channels=[8, 16, 24, 32], out_channels=16, num_outs=5),
    bbox_head=dict(
        type=RetinaHead, num_classes=2, in_channels=16, feat_channels=16, stacked_convs=1,
        anchor_generator=dict(
            type=AnchorGenerator, octave_base_scale=4, scales_per_octave=3, ratios=[1.0],
            strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder),
        loss_cls=dict(type=FocalLoss, use_sigmoid=True),
        loss_bbox=dict(type=L1Loss)),
    train_cfg=dict(
        assigner=dict(type=MaxIoUAssigner, pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
        sampler=dict(type=PseudoSampler), allowed_border=-1, pos_weight=-1),
    test_cfg=dict(nms_pre=10, min_bbox_size=0, score_thr=0.0, max_per_img=5,
                  nms=dict(type='nms', iou_threshold=0.5)))

pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations, with_bbox=True),
    dict(type=Resize, scale=(64, 64)),
    dict(type=PackDetInputs,
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=CocoDataset, data_root='DATA', ann_file='coco.json', data_prefix=dict(img='images/'),
        metainfo=dict(classes=('dark', 'light')), pipeline=pipeline))
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=CocoDataset, data_root='DATA', ann_file='coco.json', data_prefix=dict(img='images/'),
        metainfo=dict(classes=('dark', 'light')), pipeline=pipeline, test_mode=True))
val_evaluator = dict(type=CocoMetric, ann_file='DATA/coco.json', metric='bbox')
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1, val_interval=1)
val_cfg = dict(type=ValLoop)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01))
param_scheduler = [dict(type=MultiStepLR, milestones=[1])]
visualizer = None
"""


def load(name: str) -> object:
    return tiny_data.load_tool(name)


@pytest.fixture
def config(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'c.py'
    path.write_text(CONFIG.replace('DATA', str(data)))
    return path


def test_from_training_to_pictures(config: Path, data: Path) -> None:  # noqa: F811
    """There is no visualizer and no test part in the config."""
    image = data / 'images' / '0.png'
    tiny_data.run(load('train'), config, '--work-dir', 'run')
    checkpoint = Path('run') / 'epoch_1.pth'
    options = ('--out', 'out.pkl', '--show-dir', 'drawn', '--work-dir', 'test')
    tiny_data.run(load('test'), config, checkpoint, *options)
    assert len(list(Path('drawn').iterdir())) == tiny_data.NUM_IMAGES
    tiny_data.run(load('analysis/confusion_matrix'), config, 'out.pkl', 'confused')
    assert cv2.imread('confused/confusion_matrix.png') is not None
    tiny_data.run(load('image_demo'), config, checkpoint, image, '--out-dir', 'seen')
    assert cv2.imread('seen/0.png').shape == (64, 64, 3)
    tiny_data.run(load('analysis/vis_attention'), config, checkpoint, image, '--out', 'attention')
    assert Path('attention/attention.html').is_file()


def test_the_rest(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import bench_model
    from benchmarking import timing

    tiny_data.run(load('analysis/browse_dataset'), config, '--output-dir', 'seen', '--number', 1)
    assert len(list(Path('seen').iterdir())) == 1
    tiny_data.run(load('analysis/get_flops'), config, '--backbone', 'nat_m')
    assert capsys.readouterr().out.splitlines()[-1].startswith('c: ')
    tiny_data.run(load('analysis/check_data'), config)
    assert '0 errors, 0 warnings, ' in capsys.readouterr().out
    options = ('--format', 'torchscript', '--size', '64x64')
    tiny_data.run(load('export'), config, '--random-weights', *options, '--out', 'model.pt')
    assert Path('model.pt').is_file()
    monkeypatch.setattr(timing, 'BLOCK_SECONDS', 0.0)
    bench_model.main([str(config), '--whole', '--size', '64x64', '--rounds', '1'])
    assert '| 64 x 64 |' in capsys.readouterr().out
