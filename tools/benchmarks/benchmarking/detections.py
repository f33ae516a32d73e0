"""Random weights that find something: as many proposals and objects as trained ones at most do.

All scores of random weights are below the threshold of a config: nothing would be left for NMS, and
the mask head would have no work.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarking.timing import Run

CANDIDATES = 1000
"""Scores over the threshold; as many as the usual number of proposals."""
TOLERANCE = 1e-4
"""Of scores, and of boxes as a share of the longer side of the image."""


def let_through(model: Any, run: Run, images: int = 1) -> float | None:
    """Set the score threshold of a detector so that :data:`CANDIDATES` pass it, before NMS.

    Args:
        model: Of mm packages; others than detectors with a threshold are left alone.
        run: A prediction, which is made once.
        images: In the prediction.

    Returns:
        The threshold.
    """
    head = _last_box_head(model)
    if 'score_thr' not in _test_cfg(model):
        return None
    outputs: list[Any] = []
    hook = head.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
    run()
    hook.remove()
    maps = [outputs[-1]] if isinstance(outputs[-1], Tensor) else outputs[-1]
    if getattr(head.loss_cls, 'use_sigmoid', False):
        scores = torch.cat([scores.flatten() for scores in maps]).sigmoid()
    else:  # the last class is the background
        scores = torch.cat([scores.softmax(-1)[..., :-1].flatten() for scores in maps])
    kept = scores.topk(min(CANDIDATES * images, len(scores))).values
    threshold = kept[-1].item()
    set_threshold(model, threshold)
    return threshold


def set_threshold(model: Any, threshold: float | None) -> None:
    """Set the score threshold of a detector, if it has one."""
    if threshold is not None:
        _test_cfg(model).score_thr = threshold


def count(model: Any, run: Run) -> tuple[dict[str, int], Any]:
    """How many proposals and objects a prediction has, of what the model has; and itself."""
    proposals: list[int] = []
    extractor = getattr(getattr(model, 'roi_head', None), 'bbox_roi_extractor', None)
    if isinstance(extractor, torch.nn.ModuleList):  # of a cascade
        extractor = extractor[0]
    hooks = []
    if extractor is not None:
        hooks.append(
            extractor.register_forward_pre_hook(
                lambda module, inputs: proposals.append(len(inputs[1]))
            )
        )
    samples: Any = run()
    for hook in hooks:
        hook.remove()
    counts = {'proposals': sum(proposals)} if proposals else {}
    if has_objects(samples):
        counts['objects'] = sum(len(sample.pred_instances) for sample in samples)
    return counts, samples


def share_of_same(samples: Any, others: Any) -> float:
    """The share of objects that another prediction has too, within :data:`TOLERANCE`."""
    same = total = 0
    for sample, other in zip(samples, others):
        found, expected = sample.pred_instances, other.pred_instances
        boxes = (found.bboxes[:, None] - expected.bboxes).abs().amax(-1) / max(sample.img_shape)
        scores = (found.scores[:, None] - expected.scores).abs()
        is_same = (boxes <= TOLERANCE) & (scores <= TOLERANCE)
        is_same &= found.labels[:, None] == expected.labels
        same += int(is_same.any(1).sum())
        total += len(found)
    return same / max(total, 1)


def has_objects(samples: Any) -> bool:
    """Whether these are predictions of a detector."""
    return isinstance(samples, list) and all('pred_instances' in sample for sample in samples)


def _last_box_head(model: Any) -> Any:
    head = getattr(getattr(model, 'roi_head', model), 'bbox_head', None)
    return head[-1] if isinstance(head, torch.nn.ModuleList) else head


def _test_cfg(model: Any) -> Any:
    owner = getattr(model, 'roi_head', None) or getattr(model, 'bbox_head', None)
    return getattr(owner, 'test_cfg', None) or {}
