"""Whole detectors against mmdet's own predictions, and their files against them."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from tiny_detectors import FAMILIES, build, samples
from torch import Tensor

from mmlocalattn.export.detectors import whole_detector
from mmlocalattn.export.detectors.nms import NMS, best, keep_reference, suppress
from mmlocalattn.export.detectors.two_stage import pyramid_roi_align
from mmlocalattn.export.files import export, save_torchscript

WITH_MASKS = ('rtmdet_ins', 'mask_rcnn', 'cascade_mask_rcnn')


def as_outputs(results: list[Any], number: int) -> list[Tensor]:
    """Predictions of mmdet in the form of a file: boxes, scores and labels."""
    outputs = [
        torch.zeros(len(results), number, 4),
        torch.zeros(len(results), number),
        torch.full((len(results), number), -1),
    ]
    for item, result in enumerate(results):
        for output, value in zip(outputs, (result.bboxes, result.scores, result.labels)):
            output[item, : len(result)] = value
    return outputs


@torch.no_grad()
def predicted(model: Any, image: Tensor) -> list[Any]:
    """Instances of mmdet in each image."""
    return [sample.pred_instances for sample in model.predict(image, samples(image), False)]


@pytest.mark.parametrize('family', FAMILIES)
@torch.no_grad()
def test_detections_are_those_of_mmdet(family: str) -> None:
    model = build(family)
    images = [torch.randn(2, 3, 96, 128), torch.randn(1, 3, 128, 96)]
    expected = [predicted(model, image) for image in images]
    detector = whole_detector(model)
    for image, results in zip(images, expected):
        outputs = detector(image)
        number = outputs[1].shape[1]
        assert min(map(len, results)) >= min(number, 8)
        assert detector.difference(outputs[:3], as_outputs(results, number)) < 1e-4
        assert (outputs[1].diff() <= 0).all()
        if family in WITH_MASKS:
            for item, result in enumerate(results):
                compare_masks(detector, [output[item] for output in outputs], result, image)
    alone = detector(images[0][1:])
    together = [output[1:] for output in detector(images[0])]
    assert detector.difference(alone, together) < 1e-4


def compare_masks(detector: Any, outputs: list[Tensor], result: Any, image: Tensor) -> None:
    """Paste masks as mmdet does; places in which a probability is the threshold may differ."""
    boxes, _, _, masks = (output[: len(result)] for output in outputs)
    height, width = image.shape[2:]
    if detector.mask_frame == 'box':
        pasted, _ = _do_paste_mask(masks[:, None], boxes, height, width, skip_empty=False)
    else:
        logits = masks.double().logit()[None]
        pasted = torch.nn.functional.interpolate(logits, (height, width), mode='bilinear')
        pasted = pasted[0].sigmoid()
    differ = (pasted >= detector.mask_threshold) != result.masks
    assert result.masks.any()
    assert differ.float().mean() < 1e-3


def test_places_without_a_detection() -> None:
    model = build('mask_rcnn')
    model.roi_head.test_cfg.score_thr = 0.6
    boxes, scores, labels, masks = whole_detector(model)(torch.randn(2, 3, 96, 128))
    absent = labels < 0
    assert 0 < absent.sum() < absent.numel()
    assert (scores[~absent] > 0.6).all()
    for values in (boxes, scores, masks):
        assert (values[absent] == 0).all()
    assert masks[~absent].min() > 0


@pytest.mark.parametrize('class_agnostic', [True, False])
def test_suppression_is_that_of_mmcv(class_agnostic: bool) -> None:
    boxes = torch.rand(3, 200, 4) * 300
    boxes[..., 2:] = boxes[..., :2] + torch.rand(3, 200, 2) * 200
    scores, labels = torch.rand(3, 200), torch.randint(5, (3, 200))
    scores[0, 50:], scores[2] = -1, -1  # few, all and none
    kept = suppress(NMS(0.5, class_agnostic), boxes, scores, labels)
    assert (kept[2] == -1).all()
    for item in range(2):
        there = scores[item] >= 0
        some, cfg = boxes[item][there], dict(iou_threshold=0.5, class_agnostic=class_agnostic)
        _, places = batched_nms(some, scores[item][there], labels[item][there], cfg)
        expected = torch.full_like(scores[item], -1)
        places = there.nonzero().squeeze(1)[places]
        expected[places] = scores[item][places]
        torch.testing.assert_close(kept[item], expected, rtol=0, atol=0)
    assert (suppress(NMS(None, False), boxes, scores, labels) == scores).all()


def test_best_of_fewer() -> None:
    scores, places = best(torch.tensor([[0.1, 0.3]]), 4)
    assert scores.tolist() == [[pytest.approx(0.3), pytest.approx(0.1), -1, -1]]
    assert places.tolist()[0][:2] == [1, 0]
    assert places.max() < 2


class Selection(torch.nn.Module):
    """Suppression, and RoIAlign of a pyramid: the parts whose sizes depend on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = build('mask_rcnn').roi_head.bbox_roi_extractor

    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        maps = [torch.arange(8.0 * s * s).view(1, 8, s, s) for s in (32, 16, 8, 4)]
        return keep_reference(boxes, scores, 0.5), pyramid_roi_align(self.extractor, maps, boxes)


@pytest.mark.needs_torch('2.8', 'a program of torch.export')
def test_few_detections_in_a_program() -> None:
    module, corners = Selection(), torch.rand(1, 9, 2) * 30
    boxes = torch.cat((corners, corners + torch.rand(1, 9, 2) * 900), 2)
    program = torch.export.export(module, (boxes, torch.rand(1, 9))).module()
    small = torch.cat((corners, corners + 1), 2)  # all from one map
    for number in (0, 1, 9):
        scores = torch.rand(1, 9)
        scores[:, number:] = -1
        expected = module(small, scores)
        torch.testing.assert_close(program(small, scores), expected, rtol=0, atol=0)
        assert (expected[0].sum() > 0) == (number > 0)
        assert not expected[0][:, number:].any()
        assert expected[1].abs().sum() > 0


@pytest.mark.needs_torch('2.8', 'onnxscript')
def test_suppression_in_onnx() -> None:
    from mmlocalattn.export.detectors.onnx_functions import onnx_keep

    boxes = torch.rand(3, 60, 4) * 50
    boxes[..., 2:] = boxes[..., :2] + torch.rand(3, 60, 2) * 50
    scores = torch.rand(3, 60)
    scores[0, 20:], scores[2] = -1, -1
    actual = onnx_keep(boxes.numpy(), scores.numpy(), iou_threshold=0.4)
    expected = keep_reference(boxes, scores, 0.4)
    assert 0 < expected[0].sum() < 20
    np.testing.assert_array_equal(actual, expected.numpy())


@pytest.mark.needs_torch('2.8', 'onnxscript')
def test_scores_in_onnx() -> None:
    """Their order is kept, which onnxruntime's Sigmoid does not below -18."""
    from mmlocalattn.export.detectors.onnx_functions import onnx_sigmoid

    logits = torch.linspace(-80, 80, 1601)
    actual = torch.from_numpy(onnx_sigmoid(logits.numpy()))
    torch.testing.assert_close(actual, logits.sigmoid(), rtol=1e-6, atol=0)
    assert (actual[:600].diff() > 0).all()


def test_detections_match_one_to_one() -> None:
    detector = whole_detector(build('retinanet'))
    boxes = torch.rand(1, 40, 4) * 100
    scores, labels = torch.rand(1, 40), torch.arange(40)[None] % 3
    order = torch.randperm(40)
    swapped = [boxes[:, order], scores[:, order], labels[:, order]]
    assert detector.difference(swapped, (boxes, scores, labels)) == 0
    assert 0 < detector.difference((boxes + 0.1, scores, labels), (boxes, scores, labels)) < 2e-3
    fewer = labels.clone()
    fewer[0, :2] = -1
    assert detector.difference((boxes, scores, fewer), (boxes, scores, labels)) == 0
    fewer[0, :3] = -1
    assert detector.difference((boxes, scores, fewer), (boxes, scores, labels)) == torch.inf
    none = torch.full_like(labels, -1)
    assert detector.difference((boxes, scores, none), (boxes, scores, none)) == 0


@pytest.mark.parametrize('family', ['retinanet', 'dino'])
def test_trace(family: str, tmp_path: Path) -> None:
    detector = whole_detector(build(family))
    image = torch.randn(3, 3, 96, 128)
    run = save_torchscript(detector, tmp_path / 'model.pt', [(96, 128)], {})
    assert 'mmlocalattn_export' not in str(run.inlined_graph)
    with torch.no_grad():
        assert detector.difference(run(image), detector(image)) < 1e-5


@pytest.mark.needs_torch('2.8', 'a graph for a range of sizes')
def test_onnx_for_a_range_of_sizes(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    extractor = dict(featmap_strides=[16, 32])
    model = build(
        'mask_rcnn',
        levels=2,
        neck=dict(in_channels=[8, 8], num_outs=2),
        rpn_head=dict(anchor_generator=dict(strides=[16, 32])),
        roi_head=dict(bbox_roi_extractor=extractor, mask_roi_extractor=extractor),
    )
    for part in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        part.finest_scale = 20  # so that boxes are on both maps
    detector, path = whole_detector(model), tmp_path / 'model.onnx'
    assert max(export(detector, path, 'onnx', [(96, 128), (128, 96)], {})) < 1e-4
    names = {node.op_type for node in onnx.load(path).graph.node}
    assert {'NonMaxSuppression', 'RoiAlign'} <= names
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    assert [output.name for output in session.get_outputs()] == list(detector.output_names)
    image = torch.randn(3, 3, 96, 96)
    outputs = [torch.from_numpy(o) for o in session.run(None, {'image': image.numpy()})]
    with torch.no_grad():
        assert detector.difference(outputs, detector(image)) < 1e-4


def test_what_cannot_go_is_named() -> None:
    model = build('retinanet')
    end = '; --part neck exports its backbone and neck'
    for key, value, reason in (
        ('nms', dict(type='soft_nms', iou_threshold=0.5), "test_cfg has an nms of type 'soft_nms'"),
        ('nms', dict(type='nms', iou_threshold=0.5, max_num=3), "nms of test_cfg has 'max_num'"),
        ('nms_pre', -1, 'its test_cfg has nms_pre=-1, a file needs a number'),
    ):
        changed = copy.deepcopy(model)
        changed.bbox_head.test_cfg[key] = value
        with pytest.raises(ValueError, match=r'^RetinaNet cannot be exported whole: ') as error:
            whole_detector(changed)
        assert str(error.value).endswith(f': {reason}{end}')
    model.bbox_head.bbox_coder = torch.nn.Identity()
    with pytest.raises(ValueError, match='its boxes are decoded by Identity'):
        whole_detector(model)

    class Head(type(model.bbox_head)):
        def _bbox_post_process(self) -> None:
            pass

    model.bbox_head.__class__ = Head
    with pytest.raises(ValueError, match='there is no form of its Head'):
        whole_detector(model)
    model = build('mask_rcnn')
    model.roi_head.bbox_roi_extractor.roi_layers[0].pool_mode = 'max'
    with pytest.raises(ValueError, match=r'MaskRCNN .* there is no form of its RoIAlign\('):
        whole_detector(model)
    with pytest.raises(ValueError, match='there is no form of Linear'):
        whole_detector(torch.nn.Linear(1, 1))
