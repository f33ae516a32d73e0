"""``save_best`` and ``monitor`` name a metric that the evaluator gives."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EarlyStoppingHook

from mmlocalattn.training import RunError
from mmlocalattn.training.best_metric import BestMetricHook, check_best_metric

COCO = dict(type='CocoMetric', metric=['bbox', 'segm'])


def config(evaluator: object, best: object = None, **entries: object) -> Config:
    hooks = dict(checkpoint=dict(type='CheckpointHook', save_best=best))
    return Config(dict(val_evaluator=evaluator, default_hooks=hooks, **entries), filename=__file__)


@pytest.mark.parametrize(
    ('evaluator', 'best'),
    [
        (COCO, 'coco/segm_mAP_50'),
        (COCO, ['auto']),
        (dict(type='mmdet.CocoMetric', metric='proposal_fast'), 'coco/AR@300'),
        (dict(type='CocoMetric', metric='bbox', prefix='mine'), 'mine/bbox_mAP'),
        (dict(type='CocoMetric', classwise=True), 'coco/cat_precision'),
        (dict(type='IoUMetric', iou_metrics=['mDice']), 'mDice'),
        (dict(type='mmlocalattn.IntervalIoUMetric'), 'mIoU_low'),
        (dict(type='Accuracy', topk=(1, 5)), 'accuracy/top5'),
        ([COCO, dict(type='Own')], 'mine'),
        (COCO, None),
    ],
)
def test_names_that_are_given(evaluator: object, best: object) -> None:
    check_best_metric(config(evaluator, best))


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (
            config(COCO, 'bbox_mAP'),
            r"^default_hooks\.checkpoint\.save_best of \S+ is 'bbox_mAP', which the val_evaluator"
            r' does not give: it gives coco/bbox_mAP, .*coco/segm_mAP_l$',
        ),
        (config(dict(type='IoUMetric'), ['mIoU', 'mDice']), "'mDice', .* gives aAcc, mIoU, mAcc$"),
        (config(dict(type='Accuracy'), 'accuracy'), 'gives accuracy/top1$'),
        (
            config(COCO, custom_hooks=[dict(type='EarlyStoppingHook', monitor='mAP')]),
            r"^monitor of EarlyStoppingHook of \S+ is 'mAP'",
        ),
        (
            config(COCO, param_scheduler=[dict(type='ReduceOnPlateauLR')]),
            r"^monitor of ReduceOnPlateauLR of \S+ is 'loss'",
        ),
    ],
)
def test_names_that_are_not(cfg: Config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_best_metric(cfg)


def test_names_of_an_evaluator_that_is_not_known(tmp_path: Path) -> None:
    hooks = [CheckpointHook(save_best='mine', rule='greater'), EarlyStoppingHook('other', 'less')]
    message = r"gives no 'mine', .*: it gives a, b, other\. Set one of these, and --resume$"
    with pytest.raises(RunError, match=message):
        BestMetricHook().after_val_epoch(SimpleNamespace(hooks=hooks), dict(a=1, b=2, other=3))
    BestMetricHook().after_val_epoch(SimpleNamespace(hooks=hooks), {})
    BestMetricHook().after_val_epoch(SimpleNamespace(hooks=hooks), dict(mine=1, other=3))
