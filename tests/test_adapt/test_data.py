"""A user's data in stock configs: what has to know the classes knows them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from users_data import BOXES, LABELS, MAPS, MASKS, PALETTE

from mmlocalattn.adapt import CannotAdapt, describe_changes, fit_to_data, swap_backbone
from mmlocalattn.adapt.nodes import dicts
from mmlocalattn.adapt.trial import run_model
from mmlocalattn.data.folders import FolderData
from mmlocalattn.training import load_config

MASK_CONFIGS = [
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'mmdet::htc/htc_r50_fpn_1x_coco.py',
    'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
    'mmdet::solov2/solov2_r50_fpn_1x_coco.py',
    'mmdet::yolact/yolact_r50_1xb8-55e_coco.py',
    'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
    'mmdet::queryinst/queryinst_r50_fpn_1x_coco.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    'mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py',
    'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-2x_lvis-v0.5.py',
    'mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py',
    'mmdet::seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_sample1e-3-ms-2x_lvis-v1.py',
    'mmlocalattn::cascade_maskrcnn_nat_m_3x_coco.py',
    'mmlocalattn::quickstart_maskrcnn_ssvit.py',
]
BOX_CONFIGS = [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py',
    'mmdet::ssd/ssd300_coco.py',
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'mmdet::yolo/yolov3_d53_8xb8-ms-608-273e_coco.py',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py',
    'mmdet::wider_face/ssd300_8xb32-24e_widerface.py',
    'mmdet::centernet/centernet-update_r50_fpn_8xb8-amp-lsj-200e_coco.py',
    'mmlocalattn::detr_qna_vit_t_150e_coco.py',
]
MAP_CONFIGS = [
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py',
    'mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
    'mmseg::maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py',
    'mmseg::ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024.py',
    'mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py',
    'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
    'mmseg::point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::unet/unet-s5-d16_fcn_4xb4-40k_chase-db1-128x128.py',
    'mmlocalattn::upernet_ssvit_s_160k_ade20k.py',
    'mmlocalattn::quickstart_upernet_ssvit.py',
]
LABEL_CONFIGS = [
    'mmpretrain::resnet/resnet50_8xb32_in1k.py',
    'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
    'mmpretrain::resnet/resnet18_8xb16_cifar10.py',
    'mmlocalattn::nat_m_300e_imagenet.py',
]
ALL = [
    *((path, MASKS) for path in MASK_CONFIGS),
    *((path, BOXES) for path in BOX_CONFIGS),
    *((path, MAPS) for path in MAP_CONFIGS),
    *((path, LABELS) for path in LABEL_CONFIGS),
]


@pytest.fixture(autouse=True)
def no_default_scope() -> Iterator[None]:
    yield
    DefaultScope._instance_dict.clear()


def counts(node: object, key: str = '') -> set[int]:
    """Numbers of classes in a model, without those of what knows no classes."""
    found = set()
    if isinstance(node, dict):
        if node.get('type') == 'STDCHead' or key == 'rpn_head':
            return set()
        if 'num_things_classes' in node:
            found.add(node['num_things_classes'] + node['num_stuff_classes'])
        if 'num_classes' in node:
            found.add(node['num_classes'])
        return found.union(*(counts(value, name) for name, value in node.items()))
    if isinstance(node, (list, tuple)):
        return found.union(*(counts(value) for value in node))
    return found


@pytest.mark.parametrize(('path', 'data'), ALL, ids=lambda value: str(value)[:60])
def test_everything_knows_the_classes(path: str, data: FolderData) -> None:
    old = load_config(path)
    before = old.to_dict()
    cfg = fit_to_data(old, data)
    assert old.to_dict() == before
    assert counts(cfg.model) == {3}
    assert counts(cfg.get('data_preprocessor')) <= {3}
    for part in dicts(cfg.model):
        weights = part.get('class_weight')
        assert not isinstance(weights, (list, tuple)) or len(weights) in (3, 4)
    for split in ('train', 'val', 'test'):
        text = repr(cfg[f'{split}_dataloader'])
        assert text.count("'classes'") == 1
        assert '/data/' in text
        assert not any(name in text for name in ('coco/', 'Repeat'))
        for key in ('annotations', 'images', 'maps'):
            path = getattr(data.splits['train' if split == 'train' else 'val'], key)
            assert path in text
        if split != 'train':
            assert str(cfg[f'{split}_evaluator'].type).startswith('mmlocalattn.Interval')
            assert 'data/coco' not in repr(cfg[f'{split}_evaluator'])
    assert describe_changes(old, cfg)
    assert fit_to_data(cfg, data).to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    ('path', 'data'),
    [
        ('mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py', MASKS),
        ('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py', MASKS),
        ('mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py', MASKS),
        ('mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', BOXES),
        ('mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', MAPS),
        ('mmpretrain::resnet/resnet18_8xb32_in1k.py', LABELS),
    ],
    ids=['rtmdet', 'panoptic', 'maskformer', 'deformable', 'segformer', 'resnet'],
)
def test_the_models_run(path: str, data: FolderData) -> None:
    run_model(fit_to_data(load_config(path), data))


def test_with_a_backbone_of_ours() -> None:
    cfg = fit_to_data(swap_backbone(load_config(BOX_CONFIGS[0]), 'ssvit_t'), BOXES)
    assert cfg.model.backbone.type == 'mmlocalattn.SSViT'
    assert cfg.model.bbox_head.num_classes == 3


def test_pipelines_load_what_there_is() -> None:
    cfg = fit_to_data(load_config('mmdet::htc/htc_r50_fpn_1x_coco.py'), MASKS)
    steps = [step for step in dicts(cfg.train_dataloader.to_dict()) if 'with_bbox' in step]
    assert [(step['with_mask'], step['with_seg']) for step in steps] == [(True, False)]
    assert 'semantic_head' not in cfg.model.roi_head
    assert cfg.val_evaluator.metric == ['bbox', 'segm']

    cfg = fit_to_data(
        load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'),
        replace(MASKS, ignore_orientation=True),
    )
    load = cfg.test_dataloader.dataset.pipeline[0]
    assert load.color_type == 'color_ignore_orientation'
    assert cfg.val_evaluator.metric == ['bbox']

    cfg = fit_to_data(load_config(MAP_CONFIGS[0]), replace(MAPS, reduce_zero_label=False))
    assert cfg.train_dataloader.dataset.pipeline[1].reduce_zero_label is False


def test_mosaics_stay_around_the_data() -> None:
    cfg = fit_to_data(load_config('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'), BOXES)
    mixed = cfg.train_dataloader.dataset
    assert mixed.type == 'MultiImageMixDataset'
    assert mixed.pipeline[0].type == 'Mosaic'
    assert mixed.dataset.ann_file == '/data/trees/a.json'
    assert [step.type for step in mixed.dataset.pipeline] == [
        'LoadImageFromFile', 'LoadAnnotations',
    ]  # fmt: skip


def test_weights_of_classes() -> None:
    cfg = fit_to_data(load_config(MAP_CONFIGS[2]), MAPS)
    assert cfg.model.decode_head.loss_cls.class_weight == [1.0, 1.0, 1.0, 0.1]
    cfg = fit_to_data(load_config('mmlocalattn::quickstart_upernet_ssvit.py'), MAPS)
    assert cfg.model.decode_head.loss_decode.class_weight is None
    five = replace(MAPS, classes=tuple('abcde'), palette=PALETTE + PALETTE[:2])
    cfg = fit_to_data(load_config('mmlocalattn::quickstart_upernet_ssvit.py'), five)
    assert cfg.model.decode_head.loss_decode.class_weight == [0.2, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ('path', 'data', 'message'),
    [
        (MASK_CONFIGS[0], BOXES, r'masks, and /data/trees \(COCO\) has boxes alone: take'),
        (MASK_CONFIGS[3], BOXES, 'it learns masks'),
        (MASK_CONFIGS[0], MAPS, 'learns boxes or masks of objects, and /data/fields holds index'),
        (MAP_CONFIGS[0], MASKS, 'take one of mmdet, as mmdet::mask_rcnn'),
        (LABEL_CONFIGS[0], MAPS, 'the config learns a class for each image'),
        ('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', MASKS, 'without objects too'),
        ('mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py', BOXES, 'reads proposals from a file'),
        ('mmdet::rpn/rpn_r50_fpn_1x_coco.py', BOXES, 'its RPN has no number of classes'),
        ('mmdet::glip/glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco.py', BOXES, 'text'),
        ('mmdet::lad/lad_r50-paa-r101_fpn_2xb8_coco_1x.py', BOXES, 'of other classes'),
        (
            'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
            BOXES,
            'semi-supervised',
        ),
    ],
)  # fmt: skip
def test_what_cannot_take_the_data(path: str, data: FolderData, message: str) -> None:
    with pytest.raises(CannotAdapt, match=message):
        fit_to_data(load_config(path), data)


def test_the_written_config_is_enough(tmp_path: Path) -> None:
    cfg = fit_to_data(load_config(MASK_CONFIGS[0]), MASKS)
    cfg.dump(tmp_path / 'fitted.py')
    assert Config.fromfile(tmp_path / 'fitted.py').to_dict() == cfg.to_dict()
