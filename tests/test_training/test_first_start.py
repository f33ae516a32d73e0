"""The check of a model's operators at its first start on a GPU, here on a pretended one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mmlocalattn import ops
from mmlocalattn.layers.neighborhood_attention import NeighborhoodAttention
from mmlocalattn.layers.slide_attention import SlideAttention
from mmlocalattn.training import first_start, launch
from mmlocalattn.training.first_start import check_first_start, operators_of

CPU = torch.device('cpu')


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The operators that were checked; a cache folder of the test's own."""
    names: list[str] = []
    check = first_start.check_operators

    def record(device: torch.device, operators: list[str], dtypes: tuple) -> list:
        names.extend(operators)
        return check(device, operators, dtypes[:1])

    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    monkeypatch.setattr(first_start, 'check_operators', record)
    return names


@pytest.fixture
def wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def break_it() -> None:
        attend = ops.neighborhood_attention
        monkeypatch.setattr(ops, 'neighborhood_attention', lambda **kw: 1.5 * attend(**kw))

    return break_it


def test_operators_of_a_model() -> None:
    layer = NeighborhoodAttention(8, 2, 3)
    assert operators_of(nn.Sequential(nn.Linear(2, 2), layer)) == ['neighborhood_attention']
    model = nn.ModuleList([SlideAttention(8, 2, 3), layer])
    assert operators_of(model) == ['neighborhood_attention', 'slide_attention']
    assert operators_of(nn.Linear(2, 2)) == []


def test_operators_of_a_layer_that_a_user_derives() -> None:
    own = type('Own', (NeighborhoodAttention,), {'__module__': 'of_a_user'})
    assert operators_of(own(8, 2, 3)) == ['neighborhood_attention']


def test_checked_once(checked: list[str], tmp_path: Path) -> None:
    model = NeighborhoodAttention(8, 2, 3)
    for _ in range(2):
        check_first_start(model, CPU)
    assert checked == ['neighborhood_attention']
    (record,) = tmp_path.glob('mmlocalattn/right_operators_*.json')
    check_first_start(nn.ModuleList([model, SlideAttention(8, 2, 3)]), CPU)
    assert checked == ['neighborhood_attention', 'slide_attention']
    assert [*tmp_path.glob('mmlocalattn/*')] == [record]


def test_another_card_build_or_implementation_is_checked_anew(
    checked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = NeighborhoodAttention(8, 2, 3)
    check_first_start(model, CPU)
    with ops.implementation('reference', 'cpu'):
        check_first_start(model, CPU)
    monkeypatch.setattr(first_start, 'device_name', lambda _: 'NVIDIA B200')
    check_first_start(model, CPU)
    assert checked == ['neighborhood_attention'] * 3


def test_wrong_operator_stops_with_one_line(
    checked: list[str],
    wrong_kernel: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    card = 'NVIDIA B200, compute capability 10.0'
    monkeypatch.setattr(first_start, 'device_name', lambda _: card)
    model = NeighborhoodAttention(8, 2, 3)
    monkeypatch.setattr(first_start, 'operators_of', lambda _: ['neighborhood_attention'])
    wrong_kernel()
    for _ in range(2):  # it is not forgotten
        with pytest.raises(SystemExit) as stopped:
            check_first_start(model, CPU)
        message = str(stopped.value)
        assert '\n' not in message
        assert message.startswith('error: neighborhood_attention in float32: ')
        assert f'on {card}. MMLOCALATTN_CUDA=reference' in message
        assert 'python -m mmlocalattn.collect_env' in message
    assert not [*tmp_path.rglob('*.json')]


def test_without_a_gpu_or_operators_nothing_is_done(
    checked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_first_start(nn.Linear(2, 2), CPU)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    check_first_start(NeighborhoodAttention(8, 2, 3))
    assert checked == []


def test_folder_that_cannot_be_written(
    checked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / 'file'
    file.touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(file))
    check_first_start(NeighborhoodAttention(8, 2, 3), CPU)
    assert checked == ['neighborhood_attention']


def test_runners_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeRunner:
        model = NeighborhoodAttention(8, 2, 3)

        def register_hook(self, hook: object) -> None:
            pass

    seen = []
    monkeypatch.setattr(launch, 'check_first_start', seen.append)
    monkeypatch.setattr(launch, 'adapt_to_device', lambda cfg: None)
    monkeypatch.setattr(launch.Runner, 'from_cfg', lambda cfg: FakeRunner())
    launch.build_runner(launch.Config(dict(work_dir='x')))
    assert seen == [FakeRunner.model]
