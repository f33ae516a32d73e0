"""What a config gets wrong is one line until a run begins; after that a traceback stays."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hooks import EMAHook
from toy_run import quick, toy_config  # noqa: F401

from mmlocalattn.training import RunError, build_errors, build_runner, run_errors

pytestmark = pytest.mark.usefixtures('quick')


@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        (
            {'model.foo': 1},
            r'ToyModel cannot be built: TypeError: .*__init__\(\) got an unexpected keyword argume'
            r"nt 'foo'$",
        ),
        ({'model.type': 'Nothing'}, r'Nothing is not in the mmengine::model registry; is it spelt'),
        ({'model': {'_delete_': True, 'a': 1}}, 'an entry cannot be built: KeyError: .*"type", '),
        (
            {'param_scheduler': [dict(type='LinearLR', begin=5, end=5)]},
            r'LinearLR cannot be built: ValueError: end should be larger than begin, but got begin'
            r'=5, end=5 \(mmengine/optim/scheduler/param_scheduler\.py, line \d+\)$',
        ),
        (
            {'optim_wrapper.optimizer.lr': 'abc'},
            r'SGD cannot be built: TypeError: .* \(torch/optim/sgd\.py, line \d+\)$',
        ),
        ({'optim_wrapper.type': 'None'}, 'None is not in the mmengine::optim'),
        ({'train_cfg.foo': 1}, r"TypeError: EpochBasedTrainLoop\.__init__\(\) got an .* 'foo'"),
        ({'train_dataloader.foo': 1}, r"TypeError: DataLoader\.__init__\(\) got an .* 'foo'"),
        ({'train_dataloader.dataset.foo': 1}, 'ToyData cannot be built: TypeError: '),
        ({'custom_hooks': [dict(type='Nothing')]}, 'Nothing is not in the mmengine::hook registry'),
        (
            {'custom_hooks': [dict(type='EMAHook', foo=1)]},
            "Exp.* built: .* argument 'foo'$",
        ),
        ({'log_level': 'LOUD'}, r'KeyError: LOUD \(mmengine/logging/logger\.py, line \d+\)$'),
        ({'default_hooks.logger': dict(type='LoggerHook', interval='a')}, 'LoggerHook cannot be '),
    ],
)
def test_what_cannot_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: dict, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('c.py').touch()
    cfg = Config(toy_config(tmp_path / 'run', 1).to_dict(), filename='c.py')
    cfg.merge_from_dict(entries)
    with pytest.raises(SystemExit, match=f'^error: c.py: {message}') as raised, run_errors('c.py'):
        build_runner(cfg).train()
    assert '\n' not in raised.value.code
    assert ' object at 0x' not in raised.value.code


def test_errors_of_a_run_that_has_begun_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ValueError('from inside a run')

    monkeypatch.setattr(EMAHook, 'after_train_iter', broken)
    cfg = toy_config(tmp_path, 1, custom_hooks=[dict(type='EMAHook')])
    with pytest.raises(ValueError, match=r'^from inside a run$') as raised, run_errors('c.py'):
        build_runner(cfg).train()
    assert type(raised.value) is ValueError


def test_what_a_hook_stops_is_said_in_its_words() -> None:
    with pytest.raises(SystemExit, match=r'^error: stopped$'), run_errors('c.py'):
        raise RunError('stopped')
    with pytest.raises(RunError, match=r'^stopped$'), build_errors('c.py'):
        raise RunError('stopped')
    message = r'^the config: OSError: no \(.*py, line \d+\)$'
    with pytest.raises(RunError, match=message), build_errors():
        raise OSError('no')
