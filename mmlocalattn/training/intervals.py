"""How sure a score is: 95 % intervals by resampling the images that it was measured on.

The images of a test are a sample. Drawing as many of them again, with repetition, many times, and
scoring each draw shows how the score depends on the sample (the bootstrap; Efron, 1979). Nothing is
predicted again: a draw is a number of times that each image counts.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS, FEWEST_DRAWS = 1000, 200
LARGEST_WORK = 1e9  # detections x draws x IoU thresholds, and a curve of each as many as
CURVE_WORK = 5000  # detections; above it there are fewer draws
LEVEL = 95.0  # per cent


def draw_counts(num_images: int, draws: int = DRAWS, seed: int = 0) -> NDArray[np.int64]:
    """How often each image counts in each draw, (draws, num_images)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=draws)


def interval(scores: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of the scores of draws; those without a score (NaN) do not count."""
    tail = (100 - LEVEL) / 2
    low, high = np.nanpercentile(scores, [tail, 100 - tail])
    return float(low), float(high)


def coco_interval(evaluation: Any) -> tuple[float, float]:
    """Interval of COCO's AP over IoU 0.5 to 0.95.

    Args:
        evaluation: A ``COCOeval`` after ``evaluate()``.
    """
    params = evaluation.params
    rows = sum(len(item['dtScores']) for item in _all_sizes(evaluation) if item)
    work = (rows + CURVE_WORK * len(params.catIds)) * len(params.iouThrs)
    draws = int(np.clip(LARGEST_WORK / max(work, 1), FEWEST_DRAWS, DRAWS))
    return interval(coco_ap(evaluation, draw_counts(len(params.imgIds), draws)))


def coco_ap(evaluation: Any, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """COCO's AP of draws of images, as ``COCOeval.accumulate()`` computes that of each once.

    Args:
        evaluation: A ``COCOeval`` after ``evaluate()``.
        counts: (draws, images) how often each image counts, in the order of ``params.imgIds``.

    Returns:
        (draws,) means over IoU thresholds, recalls and the classes that are in the draw.
    """
    images = len(evaluation.params.imgIds)
    items = _all_sizes(evaluation)
    classes = [items[start : start + images] for start in range(0, len(items), images)]
    per_class = [_class_ap(evaluation.params, of_class, counts) for of_class in classes]
    scores = np.stack(per_class)  # (classes, draws)
    present = ~np.isnan(scores)
    number = present.sum(0)
    sums = np.where(present, scores, 0).sum(0)
    return np.divide(sums, number, out=np.full(len(counts), np.nan), where=number > 0)


def _all_sizes(evaluation: Any) -> list[dict | None]:
    """The results of objects of all sizes, for each class and image."""
    params = evaluation.params
    images, areas = len(params.imgIds), len(params.areaRng)
    items = evaluation.evalImgs  # by class, area, image; all sizes are the first area
    starts = range(0, len(items), images * areas)
    return [item for start in starts for item in items[start : start + images]]


def _class_ap(
    params: Any, items: list[dict | None], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """AP of one class for each draw; NaN where the draw has no object of it."""
    most = params.maxDets[-1]
    found = [(index, item) for index, item in enumerate(items) if item is not None]
    objects = np.zeros(counts.shape[1])
    for index, item in found:
        objects[index] = np.count_nonzero(np.asarray(item['gtIgnore']) == 0)
    number = counts @ objects  # (draws,)
    scores = np.concatenate([np.zeros(0), *(item['dtScores'][:most] for _, item in found)])
    order = np.argsort(-scores, kind='mergesort')  # as COCOeval: ties in the order of the images
    owner = np.concatenate(
        [np.zeros(0, int), *(np.full(len(item['dtScores'][:most]), i) for i, item in found)]
    )[order]
    weights = counts[:, owner]  # (draws, detections)
    result = np.zeros(len(counts))
    for threshold in range(len(params.iouThrs)):
        columns = [
            (item['dtMatches'][threshold, :most], item['dtIgnore'][threshold, :most])
            for _, item in found
        ]
        matched = np.concatenate([np.zeros(0), *(pair[0] for pair in columns)])[order] > 0
        ignored = np.concatenate([np.zeros(0), *(pair[1] for pair in columns)])[order] > 0
        true = np.cumsum(weights * (matched & ~ignored), axis=1)
        false = np.cumsum(weights * (~matched & ~ignored), axis=1)
        for draw in np.flatnonzero(number):
            result[draw] += _mean_precision(true[draw], false[draw], number[draw], params.recThrs)
    result /= len(params.iouThrs)
    result[number == 0] = np.nan
    return result


def _mean_precision(
    true: NDArray, false: NDArray, number: float, recalls: NDArray[np.float64]
) -> float:
    """Mean over recalls of the highest precision at that recall or a higher one."""
    precision = true / np.maximum(true + false, np.spacing(1.0))
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    where = np.searchsorted(true / number, recalls, side='left')
    reached = where < len(highest)
    return float(highest[where[reached]].sum() / len(recalls))


def iou_interval(intersect: NDArray, union: NDArray) -> tuple[float, float]:
    """Interval of the mean IoU, in per cent.

    Args:
        intersect: (images, classes) pixels where prediction and truth agree on the class.
        union: (images, classes) pixels where either says the class.
    """
    counts = draw_counts(len(intersect)).astype(np.float64)
    with np.errstate(invalid='ignore'):
        ious = (counts @ intersect) / (counts @ union)  # NaN for classes that are not there
    return interval(100 * np.nanmean(ious, axis=1))


def mean_interval(values: NDArray) -> tuple[float, float]:
    """Interval of the mean of one number for each image."""
    return interval(draw_counts(len(values)) @ np.asarray(values, np.float64) / len(values))
