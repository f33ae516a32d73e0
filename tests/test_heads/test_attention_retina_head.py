import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import nn

from mmlocalattn.heads.attention_retina_head import AttentionRetinaHead
from mmlocalattn.layers.stand_alone_attention import StandAloneAttention

SIZES = ((8, 12), (4, 6), (2, 3))


def build(**options):
    cfg = ConfigDict(
        type='mmlocalattn.AttentionRetinaHead',
        num_classes=5,
        in_channels=12,
        feat_channels=16,
        stacked_convs=2,
        num_heads=2,
        kernel_size=3,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=2,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss'),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
        ),
        test_cfg=dict(
            nms_pre=100, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10
        ),
    )
    return MODELS.build({**cfg, **options})


def maps():
    return tuple(torch.randn(2, 12, *size) for size in SIZES)


def samples():
    boxes = torch.tensor([[4.0, 4.0, 40.0, 44.0], [30.0, 10.0, 90.0, 60.0]])
    instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 4]))
    sizes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (64, 96))
    meta = dict(scale_factor=(1.0, 1.0), **sizes)
    return [DetDataSample(gt_instances=instances, metainfo=meta) for _ in range(2)]


def test_has_attention_for_every_3x3_convolution():
    head = build()
    assert type(head) is AttentionRetinaHead
    convs = [module for module in head.modules() if isinstance(module, nn.Conv2d)]
    assert {conv.kernel_size for conv in convs} == {(1, 1)}
    assert [conv.out_channels for conv in convs] == [6 * 5, 6 * 4]
    attention = [module for module in head.modules() if isinstance(module, StandAloneAttention)]
    assert [attn.qkv.in_features for attn in attention] == [12, 16, 16] * 2
    assert {attn.out_channels for attn in attention} == {16}


def test_one_level_is_attention_with_relu_between():
    head, (x, *_) = build(), maps()
    y = x.permute(0, 2, 3, 1)
    for index, layer in enumerate(head.cls_convs):
        y = layer.attn(y)
        y = y.relu() if index < 2 else y
    expected = head.retina_cls(y.permute(0, 3, 1, 2))
    torch.testing.assert_close(head.forward_single(x)[0], expected)


def test_weights_start_as_published():
    head = build(feat_channels=64, num_classes=80)
    head.init_weights()
    for attn in (module for module in head.modules() if isinstance(module, StandAloneAttention)):
        query, key, value = attn.qkv.weight.chunk(3)
        assert value.std().item() == pytest.approx(0.01, rel=0.1)
        assert min(query.std().item(), key.std().item()) > 0.02
    assert head.retina_cls.weight.std().item() == pytest.approx(0.01, rel=0.1)
    # every anchor starts as an object with probability 0.01
    torch.testing.assert_close(head.retina_cls.bias.sigmoid(), torch.full((480,), 0.01))


def test_trains_every_parameter():
    head = build()
    losses = head.loss(maps(), samples())
    sum(sum(values) for values in losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


def test_predicts():
    with torch.no_grad():
        results = build().eval().predict(maps(), samples())
    assert all(0 < len(result) <= 10 for result in results)


@pytest.mark.parametrize('name', ['conv_cfg', 'norm_cfg'])
def test_rejects(name):
    with pytest.raises(ValueError, match=f'no convolutions and norms, remove .*{name}'):
        build(**{name: dict(type='BN')})
