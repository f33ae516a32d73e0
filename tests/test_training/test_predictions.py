"""What a test writes beside its metrics."""

import os

import pytest
from mmengine.config import Config

from mmlocalattn.training import draw_predictions, save_predictions

OTHER = dict(type='CocoMetric')


def evaluated(scope: str, evaluator: object, out: str) -> Config:
    cfg = Config(dict(default_scope=scope, test_evaluator=evaluator))
    save_predictions(cfg, out)
    return cfg.test_evaluator


@pytest.mark.parametrize(
    ('scope', 'dump'), [('mmdet', 'DumpDetResults'), ('mmpretrain', 'DumpResults')]
)
def test_predictions_are_one_more_metric(scope: str, dump: str) -> None:
    added = dict(type=dump, out_file_path='a.pkl')
    assert evaluated(scope, OTHER, 'a.pkl') == [OTHER, added]
    assert evaluated(scope, [OTHER, OTHER], 'a.pkl') == [OTHER, OTHER, added]
    own = dict(type='MultiDatasetsEvaluator', metrics=[OTHER])
    assert evaluated(scope, own, 'a.pkl') == {**own, 'metrics': [OTHER, added]}
    with pytest.raises(ValueError, match=r"--out must end with \.pkl or \.pickle, got 'a\.json'"):
        evaluated(scope, OTHER, 'a.json')


def test_index_maps_are_written_by_the_metric_of_segmentation() -> None:
    maps = dict(type='IoUMetric', output_dir='maps')
    assert evaluated('mmseg', dict(type='IoUMetric'), 'maps') == maps
    metrics = [OTHER, dict(type='mmseg.IoUMetric')]
    assert evaluated('mmseg', metrics, 'maps') == [OTHER, {**maps, 'type': 'mmseg.IoUMetric'}]
    with pytest.raises(ValueError, match=r'^--out needs an IoUMetric, which writes the maps, in '):
        evaluated('mmseg', [OTHER], 'maps')


@pytest.mark.parametrize(
    ('scope', 'expected'),
    [
        ('mmdet', dict(draw=True, test_out_dir=os.path.abspath('seen'))),
        ('mmseg', dict(type='mmlocalattn.PicturesHook', folder=os.path.abspath('seen'))),
        ('mmpretrain', dict(enable=True, interval=1, out_dir=os.path.abspath('seen'))),
    ],
)
def test_pictures_go_into_the_folder(scope: str, expected: dict) -> None:
    hooks = dict(visualization=dict(type='Hook'))
    cfg = Config(dict(default_scope=scope, default_hooks=hooks, visualizer={}))
    draw_predictions(cfg, 'seen')
    assert cfg.default_hooks.visualization == {'type': 'Hook', **expected}
