"""Loading all of a checkpoint, or saying what of it does not fit."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import nn
from toy_run import ToyData, ToyModel, quick, toy_config  # noqa: F401

from mmlocalattn.training import RunError, build_runner, load_weights, save_checkpoint
from mmlocalattn.training.weights import Misfit, WeightsHook, classes_in

pytestmark = pytest.mark.usefixtures('quick')


class Net(nn.Module):
    """Two parts, one with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 1)


@pytest.mark.parametrize('key', ['state_dict', None])
def test_all_weights_are_loaded(tmp_path: Path, key: str | None) -> None:
    path, trained, net = tmp_path / 'new' / 'a.pth', Net(), Net()
    state = trained.state_dict()
    save_checkpoint({key: state, 'meta': dict(epoch=3)} if key else state, path)
    content = load_weights(net, path)
    assert content.get('meta') == (dict(epoch=3) if key else None)
    torch.testing.assert_close(net.state_dict(), state)
    other = Net()
    load_weights(other.body, path, 'body.')
    torch.testing.assert_close(other.body.state_dict(), trained.body.state_dict())
    assert not torch.equal(other.head.weight, trained.head.weight)


def test_batch_norms_of_old_versions_count_no_batches(tmp_path: Path) -> None:
    state = {name: v for name, v in Net().state_dict().items() if 'num_batches' not in name}
    torch.save(state, tmp_path / 'a.pth')
    load_weights(Net(), tmp_path / 'a.pth')


def test_weights_of_distributed_data_parallel(tmp_path: Path) -> None:
    state = {f'module.{name}': value for name, value in Net().state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    load_weights(Net(), tmp_path / 'a.pth')


def test_weights_of_another_model(tmp_path: Path) -> None:
    path, state = tmp_path / 'a.pth', Net().state_dict()
    del state['body.0.weight'], state['body.0.bias']
    state['body.norm.weight'] = state['more'] = torch.zeros(1)
    torch.save(state, path)
    message = (
        r'2 missing, the first body\.0\.bias, body\.0\.weight; '
        r'2 unexpected, the first body\.norm\.weight, more \(tools with --allow-partial'
    )
    with pytest.raises(ValueError, match=rf'a\.pth. is not of this config: {message}'):
        load_weights(Net(), path)
    with pytest.raises(ValueError, match=r'1 unexpected, that is body\.norm\.weight \('):
        load_weights(Net().body, path, 'body.', optional=['0.'])
    load_weights(Net().body, path, 'body.', optional=['0.', 'norm.'])
    load_weights(Net().head, path, 'head.')


def with_four_classes(path: Path, classes: tuple = ()) -> dict:
    """Write the checkpoint of a net with a larger head; returns its weights."""
    state = Net().state_dict()
    state.update({'head.weight': torch.zeros(4, 3), 'head.bias': torch.zeros(4)})
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=classes))), path)
    return state


def test_another_number_of_classes(tmp_path: Path) -> None:
    with_four_classes(tmp_path / 'a.pth', ('cat', 'dog', 'cow', 'pig'))
    message = (
        f"checkpoint '{tmp_path}/a.pth' is not of this config: head.weight has shape [4, 3] in the "
        'checkpoint and [1, 3] in the model, and 1 more are of another shape; it was trained for 4 '
        'classes, cat, dog, cow, ... (tools with --allow-partial load what fits)'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_weights(Net(), tmp_path / 'a.pth')


def test_what_fits_is_loaded_if_that_is_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    MMLogger._instance_dict.clear()  # of another test, which prints elsewhere
    state, net = with_four_classes(tmp_path / 'a.pth'), Net()
    head = net.head.weight.detach().clone()
    load_weights(net, tmp_path / 'a.pth', allow_partial=True)
    assert torch.equal(net.body[0].weight, state['body.0.weight'])
    assert torch.equal(net.head.weight, head)
    printed = capsys.readouterr().out
    assert f'Of {tmp_path}/a.pth is loaded what fits' in printed
    assert '| head.weight | [4, 3]     | [1, 3] |' in printed


def test_nothing_fits(tmp_path: Path) -> None:
    torch.save({f'net.{name}': value for name, value in Net().state_dict().items()}, 'a.pth')
    for allow_partial in (False, True):
        with pytest.raises(ValueError, match=r'a\.pth. has no weight that fits this model: 8 miss'):
            load_weights(Net(), 'a.pth', allow_partial=allow_partial)
    torch.save({'neck.weight': torch.zeros(1)}, 'b.pth')
    message = r'b\.pth. has no weight that fits the neck of this model: neck\.weight has'
    with pytest.raises(ValueError, match=message):
        load_weights(Net().head, 'b.pth', 'neck.')


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_release_is_known_by_its_names() -> None:
    weights = {'layers.0.blocks.0.attn.lepe.weight': torch.zeros(1)}
    torch.save(weights, 'bare.pth')
    torch.save(dict(model=weights, epoch=3), 'whole.pth')
    advice = '`tools/convert_checkpoint.py ssvit bare.pth NEW.pth` converts this release'
    with pytest.raises(ValueError, match=advice):
        load_weights(Net(), 'bare.pth')
    message = (
        "checkpoint 'whole.pth' has its weights neither bare nor under 'state_dict', but 'model', "
        f"'epoch': {advice.replace('bare', 'whole')}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_weights(Net(), 'whole.pth')


def test_weights_that_are_not_finite() -> None:
    state = Net().state_dict()
    state['head.bias'].fill_(float('nan'))
    torch.save(state, 'a.pth')
    message = "'a.pth' has NaN or infinities in 1 of 9 weights, that is head.bias: its training had"
    with pytest.raises(ValueError, match=message):
        load_weights(Net(), 'a.pth')


def test_many_weights_are_put_together() -> None:
    missing = {f'backbone.stages.{i}.{name}': '[3]' for i in range(20) for name in 'ab'}
    table = Misfit({**missing, 'head.weight': '[1]'}, {'neck.bias': '[2]'}).table()
    assert table == (
        '| weights         | checkpoint | model      |\n'
        '| --------------- | ---------- | ---------- |\n'
        '| backbone.stages | missing    | 40 weights |\n'
        '| head.weight     | missing    | [1]        |\n'
        '| neck.bias       | [2]        | not there  |'
    )


def write_checkpoint(classes: int, **meta: object) -> None:
    model = ToyModel(classes)
    save_checkpoint(dict(state_dict=model.state_dict(), meta=meta), Path('a.pth'))


class Weights(Hook):
    """Remembers the weights with which a training begins."""

    def before_train(self, runner: Runner) -> None:
        self.of = {name: value.clone() for name, value in runner.model.state_dict().items()}


def begin(cfg: Config) -> dict[str, torch.Tensor]:
    """Train; returns the weights that it began with."""
    runner, weights = build_runner(cfg), Weights()
    runner.register_hook(weights)
    runner.train()
    return weights.of


def test_fine_tuning_with_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One short table, and none of MMEngine's lines about each weight."""
    write_checkpoint(5)
    weights = begin(toy_config(tmp_path / 'run', 1, load_from='a.pth'))
    saved = torch.load('a.pth', weights_only=True)['state_dict']
    assert torch.equal(weights['body.weight'], saved['body.weight'])
    assert weights['head.weight'].shape == (2, 3)
    printed = capsys.readouterr().out
    assert '| head.weight | [5, 3]     | [2, 3] |' in printed
    assert 'do not match exactly' not in printed


def test_a_checkpoint_that_does_not_fit_at_all_trains_nothing(tmp_path: Path) -> None:
    torch.save(dict(state_dict={'other.weight': torch.zeros(1)}), 'a.pth')
    with pytest.raises(RunError, match=r'a\.pth. has no weight that fits this model'):
        begin(toy_config(tmp_path / 'run', 1, load_from='a.pth'))


@pytest.mark.parametrize('prefix', [None, 'body'])
def test_pretrained_parts(tmp_path: Path, prefix: str | None) -> None:
    write_checkpoint(5)
    runner = build_runner(toy_config(tmp_path / 'run', 1))
    init_cfg = dict(type='Pretrained', checkpoint='a.pth', prefix=prefix)
    runner.model.body.init_cfg = init_cfg
    if prefix is None:
        with pytest.raises(RunError, match=r'^init_cfg of Linear: .* no weight that fits'):
            runner.train()
    else:
        runner.train()


@pytest.mark.parametrize('allow_partial', [False, True])
def test_testing_needs_all(tmp_path: Path, allow_partial: bool) -> None:
    write_checkpoint(5)
    cfg = toy_config(tmp_path / 'run', 1, load_from='a.pth')
    runner = build_runner(cfg, allow_partial)
    if allow_partial:
        runner.load_or_resume()
    else:
        with pytest.raises(RunError, match=r'head.weight has shape \[5, 3\] in the checkpoint and'):
            runner.load_or_resume()


@pytest.mark.parametrize(
    'meta',
    [
        None,
        'text',
        {},
        dict(dataset_meta=None),
        dict(dataset_meta=[dict(classes=('a', 'b')), dict(classes=('c',))]),  # of ConcatDataset
        *(
            dict(dataset_meta=dict(classes=classes))
            for classes in (None, 5, 'a', [0, 'a'], [None, 'a'], [['a'], ['b']], {'a': 0})
        ),
    ],
    ids=str,
)
def test_checkpoints_that_name_no_classes(meta: object, tmp_path: Path) -> None:
    """They are tested all the same."""
    write_checkpoint(2)
    save_checkpoint({**torch.load('a.pth'), 'meta': meta}, Path('a.pth'))
    assert classes_in(dict(meta=meta)) is None
    build_runner(toy_config(tmp_path / 'run', 1, load_from='a.pth')).load_or_resume()


def test_names_of_classes() -> None:
    for classes in (('b', 'a'), ['b', 'a']):
        assert classes_in(dict(meta=dict(dataset_meta=dict(classes=classes)))) == classes


@DATASETS.register_module()
class NamedData(ToyData):
    """Of these classes."""

    def __init__(self, classes: tuple[str, ...], **_: object) -> None:
        super().__init__()
        self.metainfo = {'classes': classes}


def test_a_resumed_training_has_the_classes_of_its_own_data(tmp_path: Path) -> None:
    write_checkpoint(2)
    meta = dict(dataset_meta=dict(classes=('b', 'a')))
    content = {**torch.load('a.pth'), 'meta': meta}
    runner = build_runner(toy_config(tmp_path / 'run', 1, load_from='a.pth', resume=True))

    def check(**classes: tuple[str, str]) -> None:
        for split, names in classes.items():
            dataset = dict(type='NamedData', classes=names)
            runner.cfg[f'{split}_dataloader'] = dict(dataset=dataset)
        WeightsHook().after_load_checkpoint(runner, content)

    check(train=('b', 'a'), test=('a', 'b'))
    with pytest.raises(RunError, match='in another order than the train data of'):
        check(train=('a', 'b'), test=('b', 'a'))
