"""The optimizer of a config whose backbone was replaced."""

import pytest
from mmengine.config import Config

from mmlocalattn.adapt import BACKBONES
from mmlocalattn.adapt.optimizer import fit_layer_decay, fit_optimizer

CONSTRUCTOR = 'mmlocalattn.LayerDecayOptimWrapperConstructor'


def config(scope: str, optimizer: str = 'SGD', **entries: object) -> Config:
    """The parts of a config that matter here: a wrapper and a schedule that ends at 1e-4."""
    return Config(
        dict(
            default_scope=scope,
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type=optimizer, lr=0.01)),
            param_scheduler=[dict(type='PolyLR', eta_min=1e-4)],
            **entries,
        )
    )


@pytest.mark.parametrize(
    ('scope', 'lr', 'weight_decay'),
    [('mmdet', 4e-4, 0.05), ('mmseg', 6e-5, 0.01), ('mmpretrain', 1e-3, 0.05)],
)
def test_sgd_becomes_adamw_of_the_task(scope: str, lr: float, weight_decay: float) -> None:
    cfg = config(scope)
    fit_optimizer(cfg, BACKBONES['ssvit_t'])
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay
    )
    assert cfg.optim_wrapper.paramwise_cfg == {'norm_decay_mult': 0.0}
    assert cfg.param_scheduler[0].eta_min == pytest.approx(1e-4 * lr / 0.01)


def test_the_rate_is_scaled_to_the_batch() -> None:
    cfg = config('mmpretrain', auto_scale_lr=dict(base_batch_size=256))
    fit_optimizer(cfg, BACKBONES['nat_m'])
    assert cfg.optim_wrapper.optimizer.lr == 1e-3 * 256 / 1024


def test_another_toolbox_is_taken_for_detection() -> None:
    cfg = config('mmrotate')
    fit_optimizer(cfg, BACKBONES['dinat_b'])
    assert cfg.optim_wrapper.optimizer.lr == 7.5e-5


@pytest.mark.parametrize(
    ('optimizer', 'name'), [('AdamW', 'ssvit_t'), ('Adam', 'ssvit_t'), ('SGD', 'sasa_r50')]
)
def test_stays(optimizer: str, name: str) -> None:
    cfg = config('mmdet', optimizer)
    fit_optimizer(cfg, BACKBONES[name])
    assert cfg.to_dict() == config('mmdet', optimizer).to_dict()


def test_layer_decay_becomes_ours() -> None:
    cfg = config('mmdet')
    cfg.optim_wrapper.constructor = 'LearningRateDecayOptimizerConstructor'
    cfg.optim_wrapper.paramwise_cfg = dict(
        decay_rate=0.95, decay_type='layer_wise', num_layers=6, norm_decay_mult=0.0
    )
    fit_layer_decay(cfg)
    assert cfg.optim_wrapper.constructor == CONSTRUCTOR
    assert cfg.optim_wrapper.paramwise_cfg == dict(layer_decay_rate=0.95, norm_decay_mult=0.0)


def test_other_constructors_stay() -> None:
    cfg = config('mmpretrain')
    cfg.optim_wrapper.constructor = 'LearningRateDecayOptimWrapperConstructor'
    before = cfg.to_dict()
    fit_layer_decay(cfg)
    assert cfg.to_dict() == before
