"""Narrow detectors of every family, with random weights under which they find something."""

import copy
import functools
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
CLASSES = 3


class Strided(nn.Module):
    """Maps of strides 4, 8, 16 and 32; those of an attention backbone take longer to convert."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1) for i in range(5))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for layer in self.layers:
            image = layer(image).relu()
            maps.append(image)
        return tuple(maps[1:])


BACKBONE = dict(depth=18, base_channels=8, init_cfg=None)
FPN = dict(in_channels=[8] * 4, out_channels=8)
DENSE = dict(num_classes=CLASSES, in_channels=8, feat_channels=8, stacked_convs=1)
BOXES = dict(in_channels=8, fc_out_channels=16, num_classes=CLASSES)
MASKS = dict(num_convs=1, in_channels=8, conv_out_channels=8, num_classes=CLASSES)
EXTRACTOR = dict(out_channels=8)
RPN = dict(in_channels=8, feat_channels=8)
CASCADE_STAGE = dict(
    BOXES,
    type='Shared2FCBBoxHead',
    roi_feat_size=7,
    reg_class_agnostic=True,
    bbox_coder=dict(
        type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]
    ),
    loss_cls=dict(type='CrossEntropyLoss'),
    loss_bbox=dict(type='L1Loss'),
)
TEST = dict(nms_pre=80, max_per_img=20, score_thr=0.1)
TWO_STAGE_TEST = dict(rpn=dict(nms_pre=60, max_per_img=30), rcnn=dict(max_per_img=20))


def transformer(width: int, **attention: int) -> dict:
    """Changes to a detector with queries.

    Args:
        width: Of its embeddings.
        attention: More arguments of the attention to the maps.
    """
    own = dict(embed_dims=width, num_heads=2)
    ffn = dict(embed_dims=width, feedforward_channels=16)
    return dict(
        num_queries=12,
        positional_encoding=dict(num_feats=width // 2),
        encoder=dict(
            num_layers=1, layer_cfg=dict(self_attn_cfg=dict(own, **attention), ffn_cfg=ffn)
        ),
        decoder=dict(
            num_layers=2,
            layer_cfg=dict(self_attn_cfg=own, cross_attn_cfg=dict(own, **attention), ffn_cfg=ffn),
        ),
        bbox_head=dict(num_classes=CLASSES, embed_dims=width),
        test_cfg=dict(max_per_img=10),
    )


def deformable(width: int) -> dict:
    """As :func:`transformer`, on two maps."""
    mapper = dict(in_channels=[8], kernel_size=1, out_channels=width, num_outs=2)
    mapper |= dict(norm_cfg=dict(type='GN', num_groups=4))
    return dict(transformer(width, num_levels=2), neck=mapper, num_feature_levels=2)


ROI = dict(bbox_roi_extractor=EXTRACTOR, bbox_head=BOXES)
MASK_ROI = dict(ROI, mask_roi_extractor=EXTRACTOR, mask_head=MASKS)
CASCADE_ROI = dict(ROI, bbox_head=[CASCADE_STAGE] * 3)
BN = dict(type='BN')

# The config, changes to its model, and layers that get outputs of a size: logits and deltas.
FAMILIES: dict[str, tuple[str, dict, tuple[str, ...], tuple[str, ...]]] = {
    'retinanet': (
        'retinanet/retinanet_r50_fpn_1x_coco.py',
        dict(neck=FPN, bbox_head=DENSE, test_cfg=TEST),
        ('bbox_head.retina_cls',),
        ('bbox_head.retina_reg',),
    ),
    'fcos': (
        'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        dict(neck=FPN, bbox_head=dict(DENSE, norm_cfg=None), test_cfg=TEST),
        ('bbox_head.conv_cls', 'bbox_head.conv_centerness'),
        ('bbox_head.conv_reg',),
    ),
    'atss': (
        'atss/atss_r50_fpn_1x_coco.py',
        dict(
            neck=FPN,
            bbox_head=dict(DENSE, norm_cfg=dict(type='GN', num_groups=2)),
            test_cfg=TEST,
        ),
        ('bbox_head.atss_cls', 'bbox_head.atss_centerness'),
        ('bbox_head.atss_reg',),
    ),
    'rtmdet': (
        'rtmdet/rtmdet_l_8xb32-300e_coco.py',
        dict(
            neck=dict(in_channels=[8] * 3, out_channels=8, num_csp_blocks=1, norm_cfg=BN),
            bbox_head=dict(DENSE, norm_cfg=BN),
            test_cfg=TEST,
        ),
        ('bbox_head.rtm_cls.0', 'bbox_head.rtm_cls.1', 'bbox_head.rtm_cls.2'),
        (),
    ),
    'rtmdet_ins': (
        'rtmdet/rtmdet-ins_l_8xb32-300e_coco.py',
        dict(
            neck=dict(in_channels=[8] * 3, out_channels=8, num_csp_blocks=1, norm_cfg=BN),
            bbox_head=dict(DENSE, norm_cfg=BN),
            test_cfg=TEST,
        ),
        ('bbox_head.rtm_cls.0', 'bbox_head.rtm_cls.1', 'bbox_head.rtm_cls.2'),
        ('bbox_head.rtm_kernel.0', 'bbox_head.rtm_kernel.1', 'bbox_head.rtm_kernel.2'),
    ),
    'faster_rcnn': (
        'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        dict(neck=FPN, rpn_head=RPN, roi_head=ROI, test_cfg=TWO_STAGE_TEST),
        ('rpn_head.rpn_cls', 'roi_head.bbox_head.fc_cls'),
        ('rpn_head.rpn_reg', 'roi_head.bbox_head.fc_reg'),
    ),
    'mask_rcnn': (
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        dict(neck=FPN, rpn_head=RPN, roi_head=MASK_ROI, test_cfg=TWO_STAGE_TEST),
        ('rpn_head.rpn_cls', 'roi_head.bbox_head.fc_cls', 'roi_head.mask_head.conv_logits'),
        ('rpn_head.rpn_reg', 'roi_head.bbox_head.fc_reg'),
    ),
    'cascade_mask_rcnn': (
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
        dict(
            neck=FPN,
            rpn_head=RPN,
            roi_head=dict(MASK_ROI, bbox_head=[CASCADE_STAGE] * 3),
            test_cfg=TWO_STAGE_TEST,
        ),
        (
            'rpn_head.rpn_cls',
            *(f'roi_head.bbox_head.{stage}.fc_cls' for stage in range(3)),
            *(f'roi_head.mask_head.{stage}.conv_logits' for stage in range(3)),
        ),
        ('rpn_head.rpn_reg', *(f'roi_head.bbox_head.{stage}.fc_reg' for stage in range(3))),
    ),
    'detr': (
        'detr/detr_r50_8xb2-150e_coco.py',
        dict(transformer(16), neck=dict(in_channels=[8], out_channels=16, norm_cfg=None)),
        ('bbox_head.fc_cls',),
        ('bbox_head.fc_reg',),
    ),
    'deformable_detr': (
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        deformable(16),
        ('bbox_head.cls_branches.0',),
        (),
    ),
    'two_stage_deformable_detr': (
        'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
        deformable(256),  # mmdet's is of no other width
        ('bbox_head.cls_branches.1', 'bbox_head.cls_branches.2'),
        (),
    ),
    'dino': (
        'dino/dino-4scale_r50_8xb2-12e_coco.py',
        deformable(256),  # mmdet's is of no other width
        ('bbox_head.cls_branches.1', 'bbox_head.cls_branches.2'),
        (),
    ),
}
LEVELS = dict(rtmdet=3, rtmdet_ins=3, detr=1, deformable_detr=1, dino=1)
LEVELS['two_stage_deformable_detr'] = 1


@functools.cache
def read(config: str) -> Config:
    """A config of mmdet."""
    return Config.fromfile(CONFIGS / config)


def build(family: str, levels: int | None = None, **changes: Any) -> Any:
    """A detector of a family.

    Args:
        family: Of :data:`FAMILIES`.
        levels: How many of the last maps of the backbone it takes; None: those of its config.
        changes: To the model of its config, besides those that make it narrow.
    """
    config, narrow, logits, deltas = FAMILIES[family]
    init_default_scope('mmdet')
    cfg = copy.deepcopy(read(config))
    cfg.merge_from_dict(dict(model=narrow))
    cfg.merge_from_dict(dict(model=changes))
    cfg.model.backbone = dict(type='ResNet', **BACKBONE)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    if hasattr(model, 'level_embed'):  # what lay in the memory
        nn.init.normal_(model.level_embed)
    model.backbone = Only(Strided(), levels or LEVELS.get(family, 4))
    for name in logits:
        spread(model, name, 2.0)
    for name in deltas:
        spread(model, name, 0.5)
    return model.eval()


class Only(nn.Module):
    """The last maps of a backbone."""

    def __init__(self, backbone: nn.Module, number: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.number = number

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.backbone(image)[-self.number :]


@torch.no_grad()
def spread(model: Any, name: str, size: float) -> None:
    """Give every output of a layer the mean 0 and a standard deviation, so that all differ."""
    layer, outputs, image = model.get_submodule(name), [], torch.randn(2, 3, 96, 128)
    nn.init.normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    channel = -1 if isinstance(layer, nn.Linear) else 1
    handle = layer.register_forward_hook(
        lambda _, inputs, output: outputs.append(output.movedim(channel, 0).flatten(1))
    )
    model.eval()
    model.predict(image, samples(image), rescale=False)
    handle.remove()
    factor = size / torch.cat(outputs, 1).std(1)
    layer.weight.mul_(factor.view(-1, *(1,) * (layer.weight.dim() - 1)))
    layer.bias.copy_(-torch.cat(outputs, 1).mean(1) * factor)


def samples(image: Tensor) -> list[DetDataSample]:
    """Of images (B, C, H, W) without padding."""
    shape = tuple(image.shape[2:])
    about = dict(img_shape=shape, batch_input_shape=shape, ori_shape=shape, pad_shape=shape)
    return [DetDataSample(metainfo=dict(about, scale_factor=(1.0, 1.0))) for _ in image]
