"""Multiply-adds and parameters: those that MMEngine counts, and independent of the weights."""

from pathlib import Path

import pytest
import tiny_data
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from tiny_data import quick  # noqa: F401

from mmlocalattn.adapt.complexity import IMAGE_SIZES, model_complexity
from mmlocalattn.training import load_config

pytestmark = pytest.mark.usefixtures('quick')


def read(tmp_path: Path, text: str) -> Config:
    return Config.fromfile(tiny_data.write_config(tmp_path / 'config.py', text, tmp_path))


SLIDE_SWIN = """
_base_ = '{configs}/slide_swin_t_300e_imagenet.py'
model = dict(
    backbone=dict(arch=dict(
        _delete_=True, embed_dims=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_heads=[1, 2, 3, 4],
        mlp_ratios=[2, 2, 2, 2])),
    head=dict(in_channels=32))
"""


@pytest.mark.parametrize('text', [tiny_data.CLASSIFICATION, tiny_data.SEGMENTATION, SLIDE_SWIN])
def test_counts_as_mmengine(tmp_path: Path, text: str) -> None:
    cfg = read(tmp_path, text)
    found = model_complexity(cfg, (64, 96))
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    assert found.params == sum(parameter.numel() for parameter in model.parameters())

    inner = model.forward

    def forward(images: torch.Tensor) -> object:
        if cfg.default_scope == 'mmseg':
            return model.encode_decode(images, [dict(img_shape=(64, 96))])
        return inner(images)

    model.forward = forward
    counts = FlopAnalyzer(model, (torch.rand(1, 3, 64, 96),)).by_operator()
    counts.pop('adaptive_avg_pool2d', None)  # a mean for PyTorch
    assert found.flops == sum(counts.values())


def test_regions_do_not_depend_on_the_weights(tmp_path: Path) -> None:
    cfg = read(tmp_path, tiny_data.DETECTION)
    counts = {}
    for proposals, detections in ((1, 0), (1001, 0), (1, 100)):
        cfg.model.test_cfg.rpn.max_per_img = proposals
        cfg.model.test_cfg.rcnn.max_per_img = detections
        counts[proposals, detections] = model_complexity(cfg, (64, 64)).flops
    box = 16 * 49 * 16 + 16 * 16 + 16 * (3 + 8)  # two hidden layers; classes and offsets
    mask = 4 * 9 * 16 * 16 * 14**2 + 16 * 16 * 28**2 + 16 * 2 * 28**2  # two by two taps, stride two
    assert counts[1001, 0] - counts[1, 0] == 1000 * box
    assert counts[1, 100] - counts[1, 0] == 100 * mask


SEMANTIC = """
model.update(type='PanopticFPN', semantic_head=dict(
    type='PanopticFPNHead', num_things_classes=2, num_stuff_classes=1, in_channels=16,
    inner_channels=32), panoptic_fusion_head=dict(
    type='HeuristicFusionHead', num_things_classes=2, num_stuff_classes=1))
model['test_cfg'].update(panoptic=dict(score_thr=0.6, max_per_img=100, mask_thr_binary=0.5,
                                       mask_overlap=0.5, nms=dict(type='nms', iou_threshold=0.5)))
"""


def test_semantic_heads_are_counted(tmp_path: Path) -> None:
    counts = []
    for extra in ('', SEMANTIC):
        path = tiny_data.write_config(tmp_path / 'c.py', tiny_data.DETECTION, tmp_path, extra)
        counts.append(model_complexity(Config.fromfile(path), (64, 64)))
    assert [found.not_counted for found in counts] == [(), ()]
    sides = [16, 8, 4, 2]  # of the maps, whose first convolutions these are
    least = sum(9 * 16 * 32 * side**2 for side in sides)
    assert counts[1].flops - counts[0].flops > least


@pytest.mark.parametrize(
    ('small', 'large'),
    [
        (
            'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
            'grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco.py',
        ),
        ('htc/htc-without-semantic_r50_fpn_1x_coco.py', 'htc/htc_r50_fpn_1x_coco.py'),
    ],
)
def test_grid_and_semantic_heads_add_to_a_detector(small: str, large: str) -> None:
    counts = [model_complexity(load_config(f'mmdet::{name}'), (64, 64)) for name in (small, large)]
    assert counts[0].flops < counts[1].flops
    assert [found.not_counted for found in counts] == [(), ()]


@pytest.mark.parametrize(
    ('name', 'not_counted'),
    [
        ('mmlocalattn::detr_qna_vit_t_150e_coco.py', []),
        ('mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', []),
        ('mmdet::yolact/yolact_r50_1xb8-55e_coco.py', ['mask_head.segm_branch']),
        ('mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py', []),
        ('mmdet::detr/detr_r50_8xb2-150e_coco.py', []),
        ('mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py', []),
        ('mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py', []),
        ('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', ['dn_query_generator']),
        ('mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', []),
        (
            'mmdet::queryinst/queryinst_r50_fpn_1x_coco.py',
            [f'roi_head.mask_head.{stage}' for stage in range(5)],  # only the last one predicts
        ),
        ('mmdet::double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py', []),
        ('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', []),
    ],
)
def test_heads_of_every_kind(name: str, not_counted: list[str]) -> None:
    """What is not counted is for training. DINO and others choose 900 places of their maps."""
    found = model_complexity(load_config(name), (192, 256))
    assert found.flops > 0
    assert list(found.not_counted) == not_counted


def test_names_the_part_that_cannot_be_counted() -> None:
    cfg = load_config('mmdet::carafe/mask-rcnn_r50_fpn-carafe_1x_coco.py')
    with pytest.raises(
        ValueError,
        match=r'carafe_1x_coco\.py: the multiply-adds cannot be counted, its part '
        r'neck\.upsample_modules\.3 \(CARAFEPack\) does not predict on a CPU for 64 x 64: '
        r'RuntimeError: carafe_forward_impl: [^\n]*$',
    ):
        model_complexity(cfg, (64, 64))


def test_names_a_model_that_does_not_build(tmp_path: Path) -> None:
    cfg = read(tmp_path, tiny_data.CLASSIFICATION)
    cfg.model.neck.type = 'NoSuchNeck'
    with pytest.raises(ValueError, match=r'config\.py: the model does not build: .*NoSuchNeck'):
        model_complexity(cfg, (64, 64))


@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize(
    'text', [tiny_data.CLASSIFICATION, tiny_data.SEGMENTATION, tiny_data.DETECTION]
)
def test_images_have_the_channels_of_the_model(tmp_path: Path, text: str, channels: int) -> None:
    cfg = read(tmp_path, text)
    before = model_complexity(cfg, (64, 64)).flops
    cfg.model.backbone.in_channels = channels
    stem = 9 * 4 * 32**2  # a convolution to half of the width, for each channel
    assert model_complexity(cfg, (64, 64)).flops - before == (channels - 3) * stem


def test_image_of_the_papers(tmp_path: Path) -> None:
    cfg = read(tmp_path, tiny_data.CLASSIFICATION)
    assert model_complexity(cfg) == model_complexity(cfg, IMAGE_SIZES['mmpretrain'])
    cfg.default_scope = 'mmengine'
    with pytest.raises(ValueError, match="default_scope is 'mmengine': give the shape"):
        model_complexity(cfg)
