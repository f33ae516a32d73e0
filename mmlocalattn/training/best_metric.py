"""The names of metrics that a run is to keep its best checkpoint by, or to stop by."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.runner import Runner

from mmlocalattn.registry import HOOKS
from mmlocalattn.training.errors import RunError

_COCO = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
_PROPOSALS = ('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')
_IOU = {
    'mIoU': ('mIoU', 'mAcc'),
    'mDice': ('mDice', 'mAcc'),
    'mFscore': ('mFscore', 'mPrecision', 'mRecall'),
}
_PREFIXES = {'CocoMetric': 'coco', 'IoUMetric': '', 'Accuracy': 'accuracy'}


def check_best_metric(cfg: Config) -> None:
    """Check that the evaluator gives what ``save_best`` and ``monitor`` name, if that is known.

    Raises:
        ValueError: If it does not; names what it gives.
    """
    evaluator = cfg.get('val_evaluator')
    if evaluator is None:
        return
    metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    given = [_names(metric) for metric in metrics]
    known = [name for names in given if names is not None for name in names]
    for setting, name in _asked_for(cfg):
        if None not in given and name not in ('auto', *known):
            raise ValueError(
                f'{setting} of {cfg.filename} is {name!r}, which the val_evaluator does not give: '
                f'it gives {", ".join(known)}'
            )


def _asked_for(cfg: Config) -> Iterator[tuple[str, str]]:
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    best = hook.get('save_best') or ()
    for name in [best] if isinstance(best, str) else best:
        yield 'default_hooks.checkpoint.save_best', name
    schedule = cfg.get('param_scheduler') or ()
    schedule = [schedule] if isinstance(schedule, Mapping) else schedule
    for part in (*(cfg.get('custom_hooks') or ()), *schedule):
        kind = str(part.get('type')).rpartition('.')[2]
        if kind == 'EarlyStoppingHook' or kind.startswith('ReduceOnPlateau'):
            yield f'monitor of {kind}', part.get('monitor', 'loss')


def _names(metric: Mapping) -> list[str] | None:
    """What a metric gives, None if that is not known."""
    kind = str(metric.get('type')).rpartition('.')[2]
    interval, kind = kind.startswith('Interval'), kind.removeprefix('Interval')
    if kind not in _PREFIXES or metric.get('classwise') or metric.get('thrs'):
        return None
    prefix = metric.get('prefix') or _PREFIXES[kind]
    if kind == 'CocoMetric':
        asked = metric.get('metric', 'bbox')
        names = [
            name
            for part in ([asked] if isinstance(asked, str) else asked)
            for name in _coco_names(metric, part)
        ]
    elif kind == 'IoUMetric':
        asked = metric.get('iou_metrics', ('mIoU',))
        parts = [asked] if isinstance(asked, str) else asked
        names = ['aAcc', *(name for part in parts for name in _IOU.get(part, ()))]
    else:
        topk = metric.get('topk', (1,))
        names = [f'top{k}' for k in ([topk] if isinstance(topk, int) else topk)]
    if interval:
        names += [f'{name}_{end}' for name in names for end in ('low', 'high')]
    return [f'{prefix}/{name}' if prefix else name for name in dict.fromkeys(names)]


def _coco_names(metric: Mapping, part: str) -> list[str]:
    if part == 'proposal_fast':
        return [f'AR@{number}' for number in metric.get('proposal_nums', (100, 300, 1000))]
    if part == 'proposal':
        return list(metric.get('metric_items') or _PROPOSALS)
    return [f'{part}_{item}' for item in metric.get('metric_items') or _COCO]


@HOOKS.register_module()
class BestMetricHook(Hook):
    """Stops a training whose ``save_best`` or ``monitor`` is no metric; says which there are."""

    priority = 'ABOVE_NORMAL'  # before what reads them

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Look for the names.

        Raises:
            RunError: If one is missing. Checkpoints of the interval are written by then.
        """
        asked = {name for hook in runner.hooks for name in _asked_by(hook)} - {'auto'}
        # MMDetection gives no metrics at all where nothing was found, as after a short first epoch.
        missing = sorted(asked - set(metrics)) if metrics else []
        if missing:
            raise RunError(
                f'the evaluator gives no {missing[0]!r}, as save_best or monitor has it: it gives '
                f'{", ".join(metrics or ())}. Set one of these, and --resume'
            )


def _asked_by(hook: Hook) -> list[str]:
    if isinstance(hook, CheckpointHook) and hook.save_best:
        return list(hook.key_indicators)
    return [hook.monitor] if isinstance(hook, EarlyStoppingHook) else []
