"""The detectors of bench_heads.py: mmdet's own, narrow, on narrow backbones of the package.

A config is the model of mmdet with the data and the recipe of the quickstart, so that it learns the
digit cards in minutes on a CPU.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmlocalattn.training import load_config

RECIPE = Path(__file__).parents[3] / 'configs' / 'quickstart_maskrcnn_ssvit.py'
SIDE = 96  # of the images, pixels
DIMS = [16, 32, 48, 64]
WIDTH = 32
CLASSES = 4

_PLAIN = dict(embed_dims=DIMS, depths=[1, 1, 2, 1], num_heads=[1, 2, 3, 4], mlp_ratios=[2] * 4)
_QNA = dict(
    _PLAIN,
    depths=[1, 1, 1, 0],
    num_heads=[1, 2, 4, 8],
    kernel_sizes=[3] * 4,
    window_depths=[0, 0, 1, 1],
    window_heads=[1, 2, 3, 4],
    window_sizes=[7] * 4,
)
_SASA = dict(embed_dims=DIMS, depths=[1, 1, 2, 1], num_heads=[4] * 4)
BACKBONES: Mapping[str, dict] = {
    'SSViT': dict(type='mmlocalattn.SSViT', arch=_PLAIN, norm_cfg=dict(type='BN')),
    'NAT': dict(type='mmlocalattn.NAT', arch=_PLAIN),
    'Slide-Swin': dict(type='mmlocalattn.SlideSwin', arch=_PLAIN),
    'QnA-ViT': dict(type='mmlocalattn.QnAViT', arch=_QNA),
    'SASA': dict(type='mmlocalattn.SASAResNet', depth=_SASA),
}


@dataclass(frozen=True)
class Family:
    """A detector.

    Attributes:
        base: Config of mmdet whose model it is.
        backbone: Of :data:`BACKBONES`.
        model: Changes to the model.
        levels: How many of the last maps of the backbone it takes.
        start: Family with the same backbone whose weights of it training starts from, None for
            random ones.
        epochs: Of 100 steps.
        formats: In which it is exported.
        metric: Of what it finds.
    """

    base: str
    backbone: str
    model: dict
    levels: int = 4
    start: str | None = None
    epochs: int = 2
    formats: tuple[str, ...] = ('onnx', 'pt2')
    metric: tuple[str, ...] = ('bbox',)


EVERYWHERE = ('onnx', 'openvino', 'pt2', 'torchscript')
BOTH = ('bbox', 'segm')

_NECK = dict(in_channels=DIMS, out_channels=WIDTH)
_DENSE = dict(num_classes=CLASSES, in_channels=WIDTH, feat_channels=WIDTH, stacked_convs=1)
_GROUPS = dict(type='GN', num_groups=8, requires_grad=True)
_BN = dict(type='BN')
_DENSE_TEST = dict(nms_pre=200, max_per_img=20, score_thr=0.05)

_ANCHORS = dict(octave_base_scale=8, scales_per_octave=2, ratios=[1.0], strides=[4, 8, 16, 32])
_RPN = dict(
    in_channels=WIDTH,
    feat_channels=WIDTH,
    anchor_generator=dict(_ANCHORS, _delete_=True, type='AnchorGenerator'),
)
_BOX_EXTRACTOR = dict(out_channels=WIDTH, roi_layer=dict(sampling_ratio=2))
_MASK_EXTRACTOR = dict(out_channels=WIDTH, roi_layer=dict(sampling_ratio=1))
_BOX_HEAD = dict(in_channels=WIDTH, fc_out_channels=128, num_classes=CLASSES)
_MASK_HEAD = dict(num_convs=2, in_channels=WIDTH, conv_out_channels=WIDTH, num_classes=CLASSES)
_MASKS = dict(mask_roi_extractor=_MASK_EXTRACTOR, mask_head=_MASK_HEAD)
_RCNN = dict(sampler=dict(num=32, pos_fraction=0.5))
_TWO_STAGE_TEST = dict(
    rpn=dict(nms_pre=200, max_per_img=100),
    rcnn=dict(nms=dict(class_agnostic=True), max_per_img=20),
)


def _two_stage(roi_head: dict, stages: int = 1) -> dict:
    rcnn: Any = _RCNN
    if stages > 1:
        ious = [0.5 + 0.1 * stage for stage in range(stages)]
        rcnn = [
            dict(
                assigner=dict(
                    type='MaxIoUAssigner', pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou
                ),
                sampler=dict(
                    type='RandomSampler', num=32, pos_fraction=0.5, add_gt_as_proposals=True
                ),
                mask_size=28,
                pos_weight=-1,
                debug=False,
            )
            for iou in ious
        ]
    return dict(
        neck=dict(_NECK, num_outs=4),
        rpn_head=_RPN,
        roi_head=dict(bbox_roi_extractor=_BOX_EXTRACTOR, **roi_head),
        train_cfg=dict(
            rpn=dict(sampler=dict(num=64)),
            rpn_proposal=dict(nms_pre=200, max_per_img=100),
            rcnn=rcnn,
        ),
        test_cfg=_TWO_STAGE_TEST,
    )


def _cascade_stage(index: int) -> dict:
    spread = [0.1 / (index + 1)] * 2 + [0.2 / (index + 1)] * 2
    return dict(
        _BOX_HEAD,
        type='Shared2FCBBoxHead',
        roi_feat_size=7,
        reg_class_agnostic=True,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=spread),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
        loss_bbox=dict(type='SmoothL1Loss', beta=1.0),
    )


def _queries(width: int, layers: int, **attention: int) -> dict:
    """Changes to a detector with queries.

    Args:
        width: Of its embeddings.
        layers: Of the encoder and of the decoder.
        attention: More arguments of the attention to the maps.
    """
    own = dict(embed_dims=width, num_heads=4, dropout=0.0)
    ffn = dict(embed_dims=width, feedforward_channels=2 * width, ffn_drop=0.0)
    return dict(
        num_queries=30,
        positional_encoding=dict(num_feats=width // 2),
        encoder=dict(
            num_layers=layers, layer_cfg=dict(self_attn_cfg=dict(own, **attention), ffn_cfg=ffn)
        ),
        decoder=dict(
            num_layers=layers,
            layer_cfg=dict(self_attn_cfg=own, cross_attn_cfg=dict(own, **attention), ffn_cfg=ffn),
        ),
        bbox_head=dict(num_classes=CLASSES, embed_dims=width),
        test_cfg=dict(max_per_img=20),
    )


def _deformable(width: int) -> dict:
    """As :func:`_queries`, on three maps."""
    neck = dict(in_channels=DIMS[1:], out_channels=width, num_outs=3, norm_cfg=_GROUPS)
    return dict(_queries(width, 2, num_levels=3), neck=neck, num_feature_levels=3)


FAMILIES: Mapping[str, Family] = {
    'Mask R-CNN': Family(
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        'SSViT',
        _two_stage(dict(bbox_head=_BOX_HEAD, **_MASKS)),
        formats=EVERYWHERE,
        metric=BOTH,
    ),
    'RetinaNet': Family(
        'retinanet/retinanet_r50_fpn_1x_coco.py',
        'NAT',
        dict(neck=_NECK, bbox_head=_DENSE, test_cfg=_DENSE_TEST),
        formats=EVERYWHERE,
    ),
    'FCOS': Family(
        'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        'Slide-Swin',
        dict(neck=_NECK, bbox_head=dict(_DENSE, norm_cfg=_GROUPS), test_cfg=_DENSE_TEST),
    ),
    'ATSS': Family(
        'atss/atss_r50_fpn_1x_coco.py',
        'QnA-ViT',
        dict(neck=_NECK, bbox_head=dict(_DENSE, norm_cfg=_GROUPS), test_cfg=_DENSE_TEST),
    ),
    'RTMDet-Ins': Family(
        'rtmdet/rtmdet-ins_l_8xb32-300e_coco.py',
        'SASA',
        dict(
            neck=dict(in_channels=DIMS[1:], out_channels=WIDTH, num_csp_blocks=1, norm_cfg=_BN),
            bbox_head=dict(_DENSE, norm_cfg=_BN),
            test_cfg=_DENSE_TEST,
            data_preprocessor=dict(pad_size_divisor=32),
        ),
        levels=3,
        metric=BOTH,
    ),
    'Faster R-CNN': Family(
        'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        'QnA-ViT',
        _two_stage(dict(bbox_head=_BOX_HEAD)),
        start='ATSS',
    ),
    'Cascade Mask R-CNN': Family(
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
        'Slide-Swin',
        _two_stage(dict(bbox_head=[_cascade_stage(i) for i in range(3)], **_MASKS), stages=3),
        start='FCOS',
        metric=BOTH,
    ),
    'DETR': Family(
        'detr/detr_r50_8xb2-150e_coco.py',
        'SSViT',
        dict(
            _queries(WIDTH, 2),
            neck=dict(in_channels=DIMS[3:], out_channels=WIDTH, norm_cfg=None),
        ),
        levels=1,
        start='Mask R-CNN',
        epochs=3,
    ),
    'Deformable DETR': Family(
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        'NAT',
        _deformable(WIDTH),
        levels=3,
        start='RetinaNet',
        epochs=3,
    ),
    'DINO': Family(
        'dino/dino-4scale_r50_8xb2-12e_coco.py',
        'SASA',
        _deformable(256),  # mmdet's is of no other width
        levels=3,
        start='RTMDet-Ins',
        epochs=3,
        formats=EVERYWHERE,
    ),
}


def folder_name(family: str) -> str:
    return family.lower().replace(' ', '_').replace('-', '_')


def make_config(name: str, data: Path, weights: Path | None) -> Config:
    """The config of a family.

    Args:
        name: Key of :data:`FAMILIES`.
        data: Folder of digit cards.
        weights: Checkpoint with the backbone that training starts from.
    """
    family = FAMILIES[name]
    cfg = load_config(str(RECIPE))
    cfg.model = load_config(f'mmdet::{family.base}').model
    cfg.merge_from_dict(dict(model=copy.deepcopy(family.model)))  # _delete_ is taken out of it
    cfg.model.backbone = dict(
        BACKBONES[family.backbone], out_indices=tuple(range(4))[-family.levels :], output_norm=True
    )
    if weights is not None:
        cfg.model.backbone.init_cfg = dict(
            type='Pretrained', checkpoint=str(weights), prefix='backbone.'
        )
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{data}/'
        loader.update(num_workers=0, persistent_workers=False)
        for step in loader.dataset.pipeline:
            if step.type == 'Resize':
                step.scale = (SIDE, SIDE)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.update(
            ann_file=f'{data}/annotations/instances_val.json', metric=list(family.metric)
        )
    cfg.train_cfg.update(max_epochs=family.epochs, val_interval=family.epochs)
    cfg.param_scheduler[1].update(end=family.epochs, T_max=family.epochs)
    cfg.default_hooks.logger.interval = 20
    return cfg
