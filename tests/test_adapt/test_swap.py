"""Stock configs with a backbone of ours."""

from collections.abc import Iterator

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope

from mmlocalattn.adapt import BACKBONES, CannotAdapt, describe_changes, swap_backbone
from mmlocalattn.training import load_config

NARROW = dict(
    embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4), mlp_ratios=(2,) * 4
)
MASK_RCNN = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
PSPNET = 'mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py'
RESNET = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'


@pytest.fixture(autouse=True)
def no_default_scope() -> Iterator[None]:
    yield
    DefaultScope._instance_dict.clear()


def swapped(path: str, name: str = 'ssvit_t', **options: object) -> Config:
    return swap_backbone(load_config(path), name, **options)


@pytest.mark.parametrize('name', BACKBONES)
def test_every_name_fits_a_pyramid(name: str) -> None:
    cfg = swapped(MASK_RCNN, name)
    with torch.device('meta'):
        backbone = MODELS.build(cfg.model.backbone)
    assert cfg.model.neck.in_channels == list(backbone.out_channels)
    assert backbone.out_indices == (0, 1, 2, 3)


def test_options_follow_the_task() -> None:
    backbones = [swapped(path, 'dinat_s').model.backbone for path in (MASK_RCNN, PSPNET, RESNET)]
    assert [backbone.dilations for backbone in backbones] == ['coco', 'ade20k', 'imagenet']
    assert [backbone.drop_path_rate for backbone in backbones] == [0.35, 0.5, 0.3]
    assert swapped(PSPNET, 'dinat_s', dilations='coco').model.backbone.dilations == 'coco'


def test_detector() -> None:
    old = load_config(MASK_RCNN)
    before = old.to_dict()
    new = swap_backbone(old, 'ssvit_s')
    assert old.to_dict() == before
    assert describe_changes(old, old) == []
    changes = describe_changes(old, new)
    for line in (
        "- model.backbone.type: 'ResNet'",
        "+ model.backbone.type: 'mmlocalattn.SSViT'",
        '- model.backbone.frozen_stages: 1',
        '- model.backbone.norm_eval: True',
        "- model.backbone.init_cfg.checkpoint: 'torchvision://resnet50'",
        '- model.neck.in_channels: [256, 512, 1024, 2048]',
        '+ model.neck.in_channels: [64, 128, 256, 512]',
        "+ optim_wrapper.optimizer.type: 'AdamW'",
        '+ optim_wrapper.paramwise_cfg.norm_decay_mult: 0.0',
    ):
        assert line in changes
    assert all('backbone' in line or 'neck' in line or 'optim' in line for line in changes)


def test_dilated_segmentor() -> None:
    cfg = swapped(PSPNET)
    assert (cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels) == (512, 256)
    assert 'pretrained' not in cfg.model


def test_classifier() -> None:
    cfg = swapped(RESNET)
    assert cfg.model.backbone.out_indices == (3,)
    assert cfg.model.head.in_channels == 512
    assert cfg.data_preprocessor.to_rgb is True


def test_strides_choose_the_maps() -> None:
    cfg = swapped('mmdet::yolox/yolox_s_8xb8-300e_coco.py')  # its backbone has stages 2, 3, 4
    assert cfg.model.backbone.out_indices == (1, 2, 3)
    assert cfg.model.neck.in_channels == [128, 256, 512]


def test_maps_that_the_neck_skips_are_not_made() -> None:
    cfg = swapped('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', arch=NARROW)
    assert cfg.model.backbone.out_indices == (1, 2, 3)
    assert (cfg.model.neck.in_channels, cfg.model.neck.start_level) == ([16, 24, 32], 0)
    model = MODELS.build(cfg.model)
    sum(map.sum() for map in model.neck(model.backbone(torch.randn(1, 3, 64, 64)))).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_normalisation_of_images() -> None:
    cfg = swapped('mmdet::mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco.py')
    preprocessor = cfg.model.data_preprocessor
    assert (preprocessor.mean[0], preprocessor.std[0]) == (123.675, 58.395)
    assert preprocessor.bgr_to_rgb is True


@pytest.mark.parametrize(
    ('path', 'reason'),
    [
        ('mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py', r'no pyramid.*4, 4'),
        ('mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py', r'16, 8, 4, 2, 1'),
        ('mmseg::vit/vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512.py', r'16, 16, 16, 16'),
        ('mmseg::segmenter/segmenter_vit-s_fcn_8xb1-160k_ade20k-512x512.py', 'one scale alone'),
        ('mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py', 'PIDHead'),
        ('mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py', 'DDRHead'),
        ('mmseg::ocrnet/ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024.py', 'OCRHead'),
        ('mmdet::detectors/detectors_htc-r50_1x_coco.py', 'more than one backbone'),
        ('mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py', 'shared_head'),
        ('mmdet::misc/d2_mask-rcnn_r50-caffe_fpn_ms-90k_coco.py', 'has no backbone'),
        ('mmpretrain::vision_transformer/vit-base-p16_32xb128-mae_in1k.py', 'feature maps'),
    ],
)
def test_refuses(path: str, reason: str) -> None:
    with pytest.raises(CannotAdapt, match=reason):
        swapped(path)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"must be one of \['ssvit_t', .*got 'ssvit_xxl'"):
        swapped(MASK_RCNN, 'ssvit_xxl')


@pytest.mark.parametrize('task', ['mmdet', 'mmseg'])
def test_a_loss_and_a_prediction(task: str) -> None:
    from mmdet.testing import demo_mm_inputs

    cfg = swapped(MASK_RCNN if task == 'mmdet' else PSPNET, arch=NARROW)
    if task == 'mmseg':
        cfg.model.data_preprocessor.size = (64, 64)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    if task == 'mmdet':
        batch = demo_mm_inputs(2, (3, 64, 64), num_classes=80, with_mask=True)
    else:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        sample = SegDataSample(
            gt_sem_seg=PixelData(data=torch.randint(150, (1, 64, 64))),
            metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64)),
        )
        images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
        batch = dict(inputs=images, data_samples=[sample, sample.clone()])
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert torch.isfinite(loss)
    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(batch, training=False), mode='predict')
    assert len(results) == 2
