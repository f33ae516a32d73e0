"""Pure Python configs become configs that name their types."""

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmlocalattn.adapt import swap_backbone
from mmlocalattn.adapt.type_names import with_type_names

RETINANET = """
import torch.nn as nn
from mmengine.optim import MultiStepLR, OptimWrapper
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs
from mmdet.models import FPN, FocalLoss, L1Loss, ResNet, RetinaHead, RetinaNet
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder
from mmpretrain.models import ResNet as OtherResNet
from torch.optim import SGD

default_scope = None
model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor, mean=[0, 0, 0], std=[1, 1, 1]),
    backbone=dict(
        type=ResNet, depth=18, num_stages=4, out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type=nn.BatchNorm2d)),
    neck=dict(
        type=FPN, in_channels=[64, 128, 256, 512], out_channels=8, num_outs=5, start_level=1,
        add_extra_convs='on_input'),
    bbox_head=dict(
        type=RetinaHead, num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1,
        anchor_generator=dict(
            type=AnchorGenerator, octave_base_scale=4, scales_per_octave=3, ratios=[1.0],
            strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder),
        loss_cls=dict(type=FocalLoss, use_sigmoid=True),
        loss_bbox=dict(type=L1Loss)),
    train_cfg=None,
    test_cfg=dict(nms_pre=10, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5))
other = dict(type=OtherResNet, depth=18)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.1, weight_decay=1e-4))
param_scheduler = [dict(type=MultiStepLR, milestones=[1])]
pipeline = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations), dict(type=PackDetInputs)]
"""


def read(folder: Path, text: str = RETINANET) -> Config:
    (folder / 'c.py').write_text(text)
    return Config.fromfile(str(folder / 'c.py'))


def test_types_have_the_names_of_their_registries(tmp_path: Path) -> None:
    cfg = with_type_names(read(tmp_path))
    assert cfg.default_scope == 'mmdet'
    assert cfg.model.type == 'RetinaNet'
    assert cfg.model.backbone.norm_cfg.type == 'BN'
    assert cfg.other.type == 'mmpretrain.ResNet'
    assert cfg.optim_wrapper.optimizer.type == 'SGD'
    assert [step.type for step in cfg.pipeline] == [
        'LoadImageFromFile',
        'LoadAnnotations',
        'PackDetInputs',
    ]
    assert 'nn' not in cfg
    assert 'RetinaNet' not in cfg
    assert cfg.filename == str(tmp_path / 'c.py')
    init_default_scope('mmdet')
    assert type(MODELS.build(cfg.model)).__name__ == 'RetinaNet'


def test_a_class_that_is_in_no_registry_has_its_path(tmp_path: Path) -> None:
    text = 'from torch.nn import Linear\nmodel = dict(type=Linear)\n'
    cfg = with_type_names(read(tmp_path, text))
    assert (cfg.default_scope, cfg.model.type) == ('mmengine', 'torch.nn.modules.linear.Linear')


def test_configs_with_names_are_left_alone() -> None:
    cfg = Config(dict(model=dict(type='RetinaNet')))
    assert with_type_names(cfg) is cfg


def test_backbones_are_replaced(tmp_path: Path) -> None:
    cfg = swap_backbone(read(tmp_path), 'ssvit_t')
    assert cfg.model.backbone.type == 'mmlocalattn.SSViT'
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    assert cfg.model.neck.in_channels[0] == MODELS.build(cfg.model.backbone).out_channels[0]
