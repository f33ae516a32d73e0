"""The toolboxes' metrics with a 95 % interval: ``bbox_mAP_low`` and ``bbox_mAP_high``, and so on.

Each is registered as a function: only who asks for it needs its toolbox and waits for its import.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.fileio import load

from mmlocalattn.registry import METRICS
from mmlocalattn.training.intervals import coco_interval, iou_interval, mean_interval


def _with_bounds(metrics: dict, name: str, bounds: tuple[float, float], digits: int) -> dict:
    low, high = (round(bound, digits) for bound in bounds)
    return {**metrics, f'{name}_low': low, f'{name}_high': high}


@METRICS.register_module(name='IntervalCocoMetric')
def _coco_metric(**options: Any) -> Any:
    """Mmdet's CocoMetric, with ``bbox_mAP_low`` and ``bbox_mAP_high``, ``segm_mAP_low``, ..."""
    from mmdet.datasets.api_wrappers import COCOeval
    from mmdet.evaluation import CocoMetric

    class IntervalCocoMetric(CocoMetric):
        def compute_metrics(self, results: list) -> dict[str, float]:
            metrics = super().compute_metrics(results)
            with tempfile.TemporaryDirectory() as folder:
                files = self.results2json([prediction for _, prediction in results], f'{folder}/r')
                for kind in self.metrics:
                    if f'{kind}_mAP' not in metrics or metrics[f'{kind}_mAP'] < 0:
                        continue  # nothing was found, or there is nothing to find
                    bounds = coco_interval(self._evaluate(COCOeval, files[kind], kind))
                    metrics = _with_bounds(metrics, f'{kind}_mAP', bounds, 3)
            return metrics

        def _evaluate(self, evaluation_type: type, file: str | Path, kind: str) -> Any:
            predictions = load(file)
            if kind == 'segm':  # COCO takes areas from boxes otherwise
                for prediction in predictions:
                    prediction.pop('bbox')
            found = self._coco_api.loadRes(predictions)
            evaluation = evaluation_type(self._coco_api, found, kind)
            params = evaluation.params
            params.catIds, params.imgIds = self.cat_ids, self.img_ids
            params.maxDets, params.iouThrs = list(self.proposal_nums), self.iou_thrs
            params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
            evaluation.evaluate()
            return evaluation

    return IntervalCocoMetric(**options)


@METRICS.register_module(name='IntervalIoUMetric')
def _iou_metric(**options: Any) -> Any:
    """Mmsegmentation's IoUMetric, with ``mIoU_low`` and ``mIoU_high``."""
    from mmseg.evaluation import IoUMetric

    def bounds(results: list) -> tuple[float, float]:
        intersect, union, *_ = zip(*results)
        return iou_interval(*(torch.stack(part).double().numpy() for part in (intersect, union)))

    return _with_interval(IoUMetric, 'mIoU', bounds)(**options)


@METRICS.register_module(name='IntervalAccuracy')
def _accuracy(**options: Any) -> Any:
    """Mmpretrain's Accuracy, with ``top1_low`` and ``top1_high``."""
    from mmpretrain.evaluation import Accuracy

    thresholds = options.get('thrs', 0.0)
    threshold = next(iter(thresholds)) if isinstance(thresholds, (list, tuple)) else thresholds

    def is_right(result: dict) -> bool:
        scores = result.get('pred_score')
        if scores is None:
            return bool(result['pred_label'] == result['gt_label'])
        score, label = scores.max(0)
        return bool(label == result['gt_label']) and (threshold is None or bool(score > threshold))

    def bounds(results: list) -> tuple[float, float]:
        return mean_interval(np.array([100.0 * is_right(result) for result in results]))

    return _with_interval(Accuracy, 'top1', bounds)(**options)


def _with_interval(
    base: Any, name: str, bounds: Callable[[list], tuple[float, float]]
) -> Callable[..., Any]:
    """A metric with the interval of one of its scores, in per cent, if it has that."""

    class IntervalMetric(base):
        def compute_metrics(self, results: list) -> dict[str, float]:
            metrics = super().compute_metrics(results)
            return _with_bounds(metrics, name, bounds(results), 2) if name in metrics else metrics

    return IntervalMetric
