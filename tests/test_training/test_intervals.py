"""Intervals of scores: against the metrics themselves on images that really are repeated."""

import contextlib
import io

import numpy as np
import pytest
import torch
from mmengine.registry import METRICS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmlocalattn.training.intervals import (
    coco_ap,
    coco_interval,
    draw_counts,
    interval,
    iou_interval,
    mean_interval,
)

IMAGES, CLASSES = 6, 3


def make_results(seed: int = 0) -> tuple[list[dict], list[dict]]:
    """Random boxes, a third of them crowds or of no prediction, and predictions around them."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(IMAGES):
        for _ in range(rng.integers(1, 6)):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(10, 40, 2)]
            label = int(rng.integers(CLASSES))
            truth.append(
                dict(image_id=image, category_id=label, bbox=box, area=box[2] * box[3],
                     iscrowd=int(rng.random() < 0.1))
            )  # fmt: skip
            for _ in range(rng.integers(0, 3)):
                moved = (np.array(box) + rng.normal(0, 3, 4)).tolist()
                guess = label if rng.random() < 0.8 else int(rng.integers(CLASSES))
                found.append(
                    dict(image_id=image, category_id=guess, bbox=moved,
                         score=round(float(rng.random()), 2))
                )  # fmt: skip
    return truth, found


def evaluate(truth: list[dict], found: list[dict], images: int) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dict(
            info={},
            images=[dict(id=image, width=100, height=100) for image in range(images)],
            annotations=[{**part, 'id': index + 1} for index, part in enumerate(truth)],
            categories=[dict(id=label, name=str(label)) for label in range(CLASSES)],
        )
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(part) for part in found]), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def repeated(parts: list[dict], counts: np.ndarray) -> list[dict]:
    """The results of the images of a draw, as images of their own."""
    copies = np.repeat(np.arange(IMAGES), counts)
    return [
        {**part, 'image_id': new}
        for new, old in enumerate(copies)
        for part in parts
        if part['image_id'] == old
    ]


def test_ap_of_all_images_is_that_of_coco() -> None:
    evaluation = evaluate(*make_results(), IMAGES)
    score = coco_ap(evaluation, np.ones((1, IMAGES), int))[0]
    assert score == pytest.approx(evaluation.stats[0], abs=1e-12)
    assert 0.05 < score < 0.9


@pytest.mark.parametrize('seed', range(5))
def test_ap_of_a_draw_is_that_of_repeated_images(seed: int) -> None:
    truth, found = make_results()
    counts = draw_counts(IMAGES, 1, seed)
    expected = evaluate(repeated(truth, counts[0]), repeated(found, counts[0]), IMAGES).stats[0]
    assert coco_ap(evaluate(truth, found, IMAGES), counts)[0] == pytest.approx(expected, abs=1e-12)


def test_interval_surrounds_the_score() -> None:
    evaluation = evaluate(*make_results(), IMAGES)
    low, high = coco_interval(evaluation)
    assert low < evaluation.stats[0] < high
    assert (low, high) == coco_interval(evaluation)


def test_mean_iou() -> None:
    rng = np.random.default_rng(0)
    union = rng.integers(50, 100, (40, 3)).astype(float)
    intersect = union * rng.uniform(0.4, 0.8, (40, 3))
    score = 100 * (intersect.sum(0) / union.sum(0)).mean()
    low, high = iou_interval(intersect, union)
    assert low < score < high < low + 10
    nowhere = np.pad(union, ((0, 0), (0, 1)))
    assert iou_interval(np.pad(intersect, ((0, 0), (0, 1))), nowhere) == (low, high)


def test_mean_is_that_of_the_binomial() -> None:
    right = np.array([1.0] * 80 + [0.0] * 20)
    low, high = mean_interval(right)
    assert (low, high) == pytest.approx((0.8 - 1.96 * 0.04, 0.8 + 1.96 * 0.04), abs=0.015)


def test_interval_leaves_out_draws_without_a_score() -> None:
    assert interval(np.array([*np.linspace(0, 1, 101), np.nan])) == pytest.approx((0.025, 0.975))


def evaluate_with(samples: list[dict], **metric: object) -> dict[str, float]:
    built = METRICS.build(metric)
    built.dataset_meta = dict(classes=('a', 'b'))
    for sample in samples:
        built.process({}, [sample])
    return built.evaluate(len(samples))


def test_iou_is_that_of_mmsegmentation_with_bounds() -> None:
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(8):
        label = torch.tensor(rng.integers(0, 2, (1, 8, 8)))
        guess = torch.where(torch.tensor(rng.random((1, 8, 8)) < 0.8), label, 1 - label)
        samples.append(dict(pred_sem_seg=dict(data=guess), gt_sem_seg=dict(data=label)))
    scores = evaluate_with(samples, type='mmlocalattn.IntervalIoUMetric', iou_metrics=['mIoU'])
    low, high = scores.pop('mIoU_low'), scores.pop('mIoU_high')
    assert low < scores['mIoU'] < high < low + 20
    assert scores == evaluate_with(samples, type='mmseg.IoUMetric', iou_metrics=['mIoU'])
    dice = evaluate_with(samples, type='mmlocalattn.IntervalIoUMetric', iou_metrics=['mDice'])
    assert 'mDice' in dice and not {'mIoU', 'mIoU_low'} & set(dice)  # noqa: PT018


@pytest.mark.parametrize(
    'predicted', [dict(pred_score=torch.tensor([0.7, 0.3])), dict(pred_label=torch.tensor([0]))]
)
def test_accuracy_is_that_of_mmpretrain_with_bounds(predicted: dict[str, torch.Tensor]) -> None:
    samples = [dict(gt_label=torch.tensor([int(i > 5)]), **predicted) for i in range(8)]
    scores = evaluate_with(samples, type='mmlocalattn.IntervalAccuracy', topk=(1,))
    low, high = scores.pop('accuracy/top1_low'), scores.pop('accuracy/top1_high')
    right = np.array([100.0] * 6 + [0.0] * 2)
    assert (low, high) == pytest.approx(mean_interval(right), abs=0.005)
    assert scores == evaluate_with(samples, type='mmpretrain.Accuracy', topk=(1,))
    assert scores['accuracy/top1'] == 75


def test_accuracy_above_a_threshold() -> None:
    scores = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]]
    samples = [dict(gt_label=torch.tensor([0]), pred_score=torch.tensor(pair)) for pair in scores]
    found = evaluate_with(samples, type='mmlocalattn.IntervalAccuracy', thrs=0.75)
    low, high = found.pop('accuracy/top1_low'), found.pop('accuracy/top1_high')
    assert (low, high) == pytest.approx(mean_interval(np.array([100.0, 0, 0, 0])), abs=0.005)
    assert found['accuracy/top1'] == 25
