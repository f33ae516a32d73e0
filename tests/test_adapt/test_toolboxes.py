"""Configs of the toolboxes beside mmdet, mmseg and mmpretrain: requirements/toolboxes.txt."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from mmlocalattn.adapt import CannotAdapt, swap_backbone
from mmlocalattn.adapt.random_data import has_corners, keypoints_of, pose_input_size
from mmlocalattn.adapt.trial import random_batch, small_model
from mmlocalattn.training import load_config

NARROW: dict[str, Any] = dict(
    arch=dict(
        embed_dims=(8, 16, 24, 32), depths=(1,) * 4, num_heads=(1, 2, 3, 4), mlp_ratios=(2,) * 4
    )
)
KINDS = {
    'heat maps': 'mmpose::body_2d_keypoint/topdown_heatmap/coco/'
    'td-hm_res50_8xb64-210e_coco-256x192.py',
    'SimCC': 'mmpose::body_2d_keypoint/simcc/coco/simcc_res50_8xb64-210e_coco-256x192.py',
    'turned boxes': 'mmrotate::rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py',
    'boxes in space': 'mmdet3d::pgd/pgd_r101-caffe_fpn_head-gn_4xb3-4x_kitti-mono3d.py',
}
CHANNELS = {'mmpose': 32, 'mmrotate': [16, 24, 32], 'mmdet3d': [8, 16, 24, 32]}
INPUTS = {'mmpose': (256, 192), 'mmrotate': (128, 128), 'mmdet3d': (128, 128)}


@pytest.fixture(autouse=True)
def no_scope() -> Iterator[None]:
    yield
    DefaultScope._instance_dict.clear()


@pytest.mark.parametrize('kind', KINDS)
def test_trains(kind: str) -> None:
    """A step changes the new backbone, and the head takes its maps."""
    toolbox = KINDS[kind].partition('::')[0]
    if find_spec(toolbox) is None:
        pytest.skip(f'{toolbox} of requirements/toolboxes.txt is not installed')
    torch.manual_seed(0)
    np.random.seed(0)
    swapped = swap_backbone(load_config(KINDS[kind]), 'ssvit_t', **NARROW)
    part = swapped.model.head if toolbox == 'mmpose' else swapped.model.neck
    assert part.in_channels == CHANNELS[toolbox]
    model = revert_sync_batchnorm(MODELS.build(small_model(swapped, 128)))
    model.init_weights()
    before = {name: weight.clone() for name, weight in model.backbone.named_parameters()}
    batch = random_batch(swapped, (128, 128))
    images = batch['inputs']['img'] if toolbox == 'mmdet3d' else batch['inputs']
    assert [image.shape for image in images] == [(3, *INPUTS[toolbox])] * 2
    losses = model.train_step(batch, build_optim_wrapper(model, swapped.optim_wrapper))
    assert all(torch.isfinite(loss).all() for loss in losses.values())
    same = [
        name for name, weight in model.backbone.named_parameters() if weight.equal(before[name])
    ]
    assert not same


@pytest.mark.parametrize(
    ('model', 'reason'),
    [
        (
            dict(backbone=dict(type='mmdet.ResNet', depth=18, out_indices=(0,))),
            'its backbone mmdet.ResNet has one map alone, of stride 4: of a pyramid only the first',
        ),
        (
            dict(pts_backbone=dict(type='SECOND')),
            'its only backbone is the pts_backbone SECOND',
        ),
        (
            dict(
                data_preprocessor=dict(type='Det3DDataPreprocessor', voxel=True),
                backbone=dict(type='SECOND'),
            ),
            'its backbone SECOND takes maps of points, not images',
        ),
    ],
)
def test_refusals(model: dict, reason: str) -> None:
    with pytest.raises(CannotAdapt, match=reason):
        swap_backbone(Config(dict(model=model)), 'ssvit_t')


def test_groups_that_do_not_fit() -> None:
    backbone = dict(type='mmdet.ResNet', depth=18, out_indices=(3,))
    head = dict(type='SimCCHead', in_channels=512, deconv_num_groups=(160, 160))
    with pytest.raises(CannotAdapt, match='its SimCCHead deconvolves in 160 groups, which 32'):
        swap_backbone(Config(dict(model=dict(backbone=backbone, head=head))), 'ssvit_t', **NARROW)


def test_maps_that_are_joined() -> None:
    """RTMWHead takes a map of stride 16 with half the channels of that of stride 32."""
    backbone = dict(type='mmdet.ResNet', depth=18, out_indices=(2, 3))
    model = dict(backbone=backbone, head=dict(type='RTMWHead', in_channels=512))
    cfg = Config(dict(model=model))
    swap_backbone(cfg, 'ssvit_t')
    assert cfg.model.head.in_channels == 512
    reason = 'the last must have twice the channels, and gets maps of '
    with pytest.raises(CannotAdapt, match=rf'{reason}\[320, 512\]'):
        swap_backbone(Config(dict(model=model)), 'ssvit_b')
    alone = dict(type='mmdet.ResNet', depth=18, out_indices=(3,))
    with pytest.raises(CannotAdapt, match=rf'{reason}\[32\]'):
        swap_backbone(Config(dict(model={**model, 'backbone': alone})), 'ssvit_t', **NARROW)


def test_input_size_of_pose_estimators() -> None:
    """The first codec that has one, as (height, width)."""
    codecs = [dict(type='Other'), dict(type='MSRAHeatmap', input_size=(192, 256))]
    assert pose_input_size(Config(dict(model=dict(head=dict(decoder=codecs))))) == (256, 192)
    assert pose_input_size(Config(dict(model=dict(head=dict(out_channels=17))))) is None


@pytest.mark.parametrize(
    'head',
    [
        dict(type='HeatmapHead', in_channels=2048, out_channels=17),
        dict(
            type='VisPredictHead',
            loss=dict(type='BCELoss', loss_weight=1),
            pose_cfg=dict(type='HeatmapHead', in_channels=2048, out_channels=17),
        ),
    ],
)
def test_keypoints_of_pose_estimators(head: dict) -> None:
    """Of the head, or of the one that it puts a prediction of visibility beside."""
    assert keypoints_of(Config(dict(model=dict(head=head)))) == 17


def test_heads_that_do_not_say_their_keypoints() -> None:
    with pytest.raises(ValueError, match='the head MSPNHead does not say how many keypoints'):
        keypoints_of(Config(dict(model=dict(head=dict(type='MSPNHead', num_stages=2)))))


@pytest.mark.parametrize(('converted', 'expected'), [(['hbox', 'rbox'], False), ([], True)])
def test_kind_of_turned_boxes(converted: list[str], expected: bool) -> None:
    """The one that annotations are loaded as, unless a later step converts them."""
    load = dict(type='mmdet.LoadAnnotations', with_bbox=True, box_type='qbox')
    steps = [
        dict(type='ConvertBoxType', box_type_mapping=dict(gt_bboxes=kind)) for kind in converted
    ]
    loader = dict(dataset=dict(pipeline=[load, *steps, dict(type='mmdet.PackDetInputs')]))
    assert has_corners(Config(dict(train_dataloader=loader))) is expected
