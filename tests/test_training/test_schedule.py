"""A resumed run has the learning rates that a new run with its config has."""

from pathlib import Path

import pytest
from toy_run import PASS, quick, toy_config, train  # noqa: F401

from mmlocalattn.training import RunError

pytestmark = pytest.mark.usefixtures('quick')
WARM_UP = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)


def multi_step(*milestones: int) -> dict:
    return dict(type='MultiStepLR', by_epoch=True, milestones=[*milestones])


def cosine(end: int) -> dict:
    return dict(
        type='CosineAnnealingLR',
        begin=1,
        end=end,
        T_max=end - 1,
        by_epoch=True,
        convert_to_iter_based=True,
    )


def poly(end: int) -> dict:
    return dict(type='PolyLR', by_epoch=False, begin=4, end=end)


def one_cycle(steps: int) -> dict:
    return dict(type='OneCycleLR', eta_max=0.2, total_steps=steps, by_epoch=False)


ADAM = dict(optimizer=dict(_delete_=True, type='AdamW', lr=0.01))
EPOCHS = {
    'milestones': ([multi_step(1, 2)], [multi_step(4, 5)], {}),
    'by epoch, with the default end': (
        [dict(type='CosineAnnealingLR', by_epoch=True)],
        [dict(type='CosineAnnealingLR', by_epoch=True)],
        {},
    ),
    'by iteration': ([WARM_UP, cosine(3)], [WARM_UP, cosine(6)], {}),
    'the same': ([WARM_UP, multi_step(2)], [WARM_UP, multi_step(2)], {}),
    'more': ([], [multi_step(4)], {}),
    'fewer': ([multi_step(1)], None, {}),
    'momentum': (
        [dict(type='CosineAnnealingMomentum', T_max=3, by_epoch=True)],
        [dict(type='CosineAnnealingMomentum', T_max=6, by_epoch=True), one_cycle(18)],
        ADAM,
    ),
}


@pytest.mark.parametrize(('old', 'new', 'optimizer'), EPOCHS.values(), ids=EPOCHS)
def test_more_epochs(tmp_path: Path, old: list, new: list, optimizer: dict) -> None:
    groups = dict(paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=0.5)}))
    wrapper = dict(optim_wrapper={**groups, **optimizer})
    train(toy_config(tmp_path / 'a', 3, param_scheduler=old, **wrapper))
    resumed = train(toy_config(tmp_path / 'a', 6, param_scheduler=new, **wrapper), resume=True)
    fresh = train(toy_config(tmp_path / 'b', 6, param_scheduler=new, **wrapper))
    assert [*resumed.of] == [*range(3 * PASS, 6 * PASS)]
    for iteration, values in resumed.of.items():
        assert values == pytest.approx(fresh.of[iteration], rel=1e-9)


def test_more_iterations(tmp_path: Path) -> None:
    old, new = ([WARM_UP, poly(end)] for end in (6, 12))
    train(toy_config(tmp_path / 'a', 6, by_epoch=False, param_scheduler=old))
    more = toy_config(tmp_path / 'a', 12, by_epoch=False, param_scheduler=new)
    resumed = train(more, resume=True)
    fresh = train(toy_config(tmp_path / 'b', 12, by_epoch=False, param_scheduler=new))
    assert [*resumed.of] == [*range(6, 12)]
    for iteration, values in resumed.of.items():
        assert values == pytest.approx(fresh.of[iteration], rel=1e-9)


def test_another_learning_rate(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for scheduler in (None, [multi_step(1)]):
        folder = tmp_path / str(scheduler is None)
        train(toy_config(folder, 2, param_scheduler=scheduler))
        cfg = toy_config(folder, 4, param_scheduler=scheduler)
        cfg.optim_wrapper.optimizer.lr = 0.3
        rate = train(cfg, resume=True).of[2 * PASS][0]
        assert rate == pytest.approx(0.3 if scheduler is None else 0.03)
    assert (
        'The schedule of the config is not that of the checkpoint. The run follows the config from '
        'epoch 2, iteration 6, and learning rate 0.03 (that of the checkpoint was 0.01).'
    ) in capsys.readouterr().out


def test_a_schedule_that_ends_before_the_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=2, end=2)]
    train(toy_config(tmp_path, 2, param_scheduler=scheduler))
    train(toy_config(tmp_path, 3, param_scheduler=scheduler), resume=True)
    assert 'The schedule of the config ends at epoch 2 of 3: from there' in capsys.readouterr().out


def test_a_schedule_by_metrics_is_refused(tmp_path: Path) -> None:
    train(toy_config(tmp_path, 2, param_scheduler=[multi_step(1)]))
    new = [dict(type='ReduceOnPlateauLR', monitor='loss', by_epoch=True)]
    message = r'cannot be followed, because .*\(param_name=lr, .* instead of \(.*milestones='
    with pytest.raises(RunError, match=message):
        train(toy_config(tmp_path, 3, param_scheduler=new), resume=True)


def test_another_number_of_groups_is_refused(tmp_path: Path) -> None:
    train(toy_config(tmp_path, 2, param_scheduler=[multi_step(1)]))
    cfg = toy_config(tmp_path, 3, param_scheduler=[multi_step(2)])
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys={'head': dict(lr_mult=0.5)})
    message = 'has 4 groups of weights, that of the checkpoint 1: resume with the paramwise_cfg of'
    with pytest.raises(RunError, match=message):
        train(cfg, resume=True)
