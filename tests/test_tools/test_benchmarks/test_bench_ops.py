"""tools/benchmarks/bench_ops.py: every way computes the same, tables, files, what is left out."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import matplotlib.image
import pytest
import torch
from benchmarking import operators, timing
from benchmarking.baselines import WAYS as ALL_WAYS
from benchmarking.baselines import Problem
from benchmarking.choices import BASELINES
from benchmarking.windows import OURS

from mmlocalattn.ops import OPS

WAYS = ('reference', 'unfold', 'sdpa')
SMALL = ('--shapes', '9x12,2,3,2', '--scan-shapes', '14x15,1', '--head-dim', '4', '--rounds', '1')
SMALL = (*SMALL, '--stand-alone-shapes', '--slide-shapes')


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import bench_ops

    monkeypatch.setattr(operators, 'MATRIX', 32)
    monkeypatch.setattr(timing, 'BLOCK_SECONDS', 0.0)
    monkeypatch.setitem(sys.modules, 'natten', None)  # not installed, here at least
    return bench_ops


def parse(tool: ModuleType, *argv: str) -> argparse.Namespace:
    args = tool.parse_args(argv)
    args.device = torch.device(args.device)
    return args


def problem(**changes: object):
    values = dict(batch=2, height=13, width=19, heads=2, head_dim=8, kernel=(3, 5), dilation=(4, 2))
    values |= dict(dtype=torch.float64, device=torch.device('cpu'))
    return Problem(**values | changes)


def test_baselines_that_can_be_chosen() -> None:
    assert tuple(ALL_WAYS) == ('ours', *BASELINES)


def test_every_operator_is_timed(tool: ModuleType) -> None:
    args = parse(tool)
    for cases in (operators.make_cases(args), operators.small_cases(args)):
        assert {case.title for case in cases} | {OURS} == {*OPS}


@pytest.mark.parametrize('bias', [(), ('--bias',)], ids=['plain', 'bias'])
@pytest.mark.parametrize(
    'dtype',
    [
        'float32',
        'bfloat16',
        pytest.param(
            'float16', marks=pytest.mark.needs_torch('2.4', 'a float16 product on the CPU')
        ),
    ],
)
def test_ways_agree(tool: ModuleType, dtype: str, bias: tuple[str, ...]) -> None:
    args = parse(tool, '--dtype', dtype, '--baselines', *WAYS, *bias)
    assert operators.check_all(args) == {}


@pytest.mark.needs_torch('2.5', 'flex attention')
@pytest.mark.filterwarnings('ignore:flex_attention called without torch.compile')
def test_flex_agrees(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not compiled, which takes longer than the whole suite may."""
    monkeypatch.setattr(torch, 'compile', lambda function, **_: function)
    args = parse(tool, '--baselines', 'flex', 'flex-tiled', '--forward-only')
    assert operators.check_all(args) == {}


@pytest.mark.needs_torch('2.5', 'flex attention')
@pytest.mark.parametrize('tile', [None, (8, 16), (4, 4)])
def test_block_mask_is_the_windows(tool: ModuleType, tile: tuple[int, int] | None) -> None:
    from benchmarking.baselines import TokenOrder

    small = problem()
    tokens = TokenOrder(small, tile)
    tensor = torch.randn(small.shape)
    assert torch.equal(tokens.unsort(tokens.sort(tensor)), tensor)

    index = torch.arange(tokens.length)
    mask = tokens.mask_mod(None, None, index[:, None], index)
    places = torch.arange(small.positions).view(1, *small.shape[1:3], 1, 1)
    places = (tokens.sort(places).flatten() if tile else index).tolist()  # of padding: 0
    row, column = tokens.place(index)
    real = ((row < small.height) & (column < small.width)).nonzero().flatten().tolist()
    windows = [set(window) for window in small.windows().tolist()]
    for query in real:
        assert {places[key] for key in real if mask[query, key]} == windows[places[query]]
        assert mask[query].sum() == small.taps  # so it sees no padding

    pad = -tokens.length % tokens.BLOCK
    padded = torch.nn.functional.pad(mask, (0, pad, 0, pad))
    parts = padded.unflatten(1, (-1, tokens.BLOCK)).unflatten(0, (-1, tokens.BLOCK))
    assert torch.equal(tokens.block_mask().to_dense()[0, 0].bool(), parts.any(3).any(1))


def test_natten_old_and_new(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both generations of the interface, played by the reference."""
    from benchmarking.baselines import Unavailable, reference

    square = problem(kernel=(3, 3), dilation=(2, 2))
    tensors = [*torch.randn(3, *square.shape, dtype=square.dtype)]
    expected = reference(square)(*tensors, None)

    def na2d(query, key, value, kernel_size, stride=1, dilation=1, scale=None):
        assert (kernel_size, dilation, scale) == (square.kernel, square.dilation, square.scale)
        return reference(square)(query, key, value, None)

    def natten2dqkrpb(query, key, rpb, kernel_size, dilation):
        assert (rpb, kernel_size, dilation) == (None, 3, 2)
        keys = key.flatten(2, 3)[:, :, square.windows()]
        query = query.flatten(2, 3)[..., None, :]
        return (query * keys).sum(-1).unflatten(2, (13, 19))

    def natten2dav(weights, value, kernel_size, dilation):
        values = value.flatten(2, 3)[:, :, square.windows()]
        return (weights.flatten(2, 3)[..., None] * values).sum(-2).unflatten(2, (13, 19))

    for functions in (dict(na2d=na2d), dict(natten2dqkrpb=natten2dqkrpb, natten2dav=natten2dav)):
        package, functional = ModuleType('natten'), ModuleType('natten.functional')
        package.__version__, package.functional = '0.0', functional
        vars(functional).update(functions)
        monkeypatch.setitem(sys.modules, 'natten', package)
        monkeypatch.setitem(sys.modules, 'natten.functional', functional)
        output = ALL_WAYS['natten'](square)(*tensors, None)
        torch.testing.assert_close(output, expected)
    with pytest.raises(Unavailable, match='square windows only'):
        ALL_WAYS['natten'](problem())


def test_disagreement_is_an_error(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ALL_WAYS['unfold']
    wrong = lambda problem: lambda *tensors: right(problem)(*tensors) * 1.01  # noqa: E731
    monkeypatch.setitem(ALL_WAYS, 'unfold', wrong)
    with pytest.raises(SystemExit, match=r'unfold disagrees with the reference .* output is off'):
        tool.main(SMALL)


def test_files_and_full_table(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / 'out.json', tmp_path / 'plot.png'
    tool.main([*SMALL, '--baselines', 'unfold', 'natten', '--out', str(out), '--plot', str(plot)])
    record = json.loads(out.read_text())
    results = {(r['op'], r['way'], r['pass']): r for r in record['results']}
    assert len(results) == len(record['results']) == 2 * 3 + 2 * 4
    ours = results['neighborhood_attention', 'ours', 'forward']
    assert ours['seconds'] > 0
    assert ours['gflops'] * ours['seconds'] == pytest.approx(4 * 9 * 12 * 2 * 4 * 9 / 1e9)
    both = results['neighborhood_attention', 'ours', 'forward+backward']
    assert both['gflops'] * both['seconds'] == pytest.approx(3.5 * 4 * 9 * 12 * 2 * 4 * 9 / 1e9)
    scan = results['sparse_scan_attention', 'two ops', 'forward']
    assert scan['steps'] == [[[7, 7], [1, 1]], [[3, 3], [4, 4]]]
    assert scan['gflops'] * scan['seconds'] == pytest.approx(4 * 14 * 15 * 4 * (49 + 9) / 1e9)
    assert (
        'natten does not import' in results['sparse_scan_attention', 'natten', 'forward']['skipped']
    )

    text = capsys.readouterr().out
    assert text.count('| two ops') == 2
    assert text.count('skipped: natten does not import') == 4
    assert matplotlib.image.imread(plot).std() > 0.1


def test_short_table(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    tool.main([*SMALL, '--markdown', '--batch', '1', '2', '--baselines', 'unfold', 'natten'])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
    assert len(lines) == 2 * 4
    heading, _, one, two = ([cell.strip() for cell in line.split('|')] for line in lines[:4])
    assert heading[1:3] == ['map, heads', 'kernel, dilation']
    assert heading[-3:-1] == ['unfold', 'natten']
    assert one[1:3] == ['9 x 12, 2', '3, 2']
    assert two[1] == '2 x 9 x 12, 2'
    assert one[-2] == '- / -'


def test_what_does_not_fit_is_left_out(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(operators, 'free_memory', lambda device: 1000)
    tool.main([*SMALL, '--baselines', 'unfold', 'sdpa', '--forward-only'])
    assert capsys.readouterr().out.count('skipped: needs 0.0 GB, 0.0 GB are free') == 2 * 2


def test_what_fails_is_left_out(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a map of the benchmark, that is; on the small maps of the check it is an error."""
    right = ALL_WAYS['unfold']

    def fails(problem):
        def attend(*tensors):
            if problem.height != 13:
                raise torch.cuda.OutOfMemoryError('too large\nmore')
            return right(problem)(*tensors)

        return attend

    monkeypatch.setitem(ALL_WAYS, 'unfold', fails)
    tool.main(SMALL)
    assert capsys.readouterr().out.count('skipped: too large |') == 4


@pytest.mark.parametrize(
    'text', ['100x167', '100,2,7,1', 'axb,2,7,1', '100x167,2,7,1,1', '0x9,2,7,1']
)
def test_bad_shape(tool: ModuleType, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tool.parse_args(['--shapes', text])
    assert f"not HxW,HEADS,KERNEL,DILATION: '{text}'" in capsys.readouterr().err


def test_rectangular_windows(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    tool.main([*SMALL, '--shapes', '9x12,2,3x5,1', '--scan-shapes', '--baselines', 'reference'])
    assert '3x5, 1' in capsys.readouterr().out


def test_slide_attention(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out.json'
    tool.main([*SMALL, '9x12,2,5', '--shapes', '--scan-shapes', '--markdown', '--out', str(out)])
    record = json.loads(out.read_text())
    results = {(r['way'], r['pass']): r for r in record['results']}
    assert len(results) == len(record['results']) == 3 * 2
    assert {r['op'] for r in record['results']} == {'slide_attention'}
    forward, both = (results['ours', name] for name in ('forward', 'forward+backward'))
    copies = 9 * 12 * 2 * 4 * 25
    assert forward['gflops'] * forward['seconds'] == pytest.approx(2 * copies * (2 + 50) / 1e9)
    assert both['gflops'] * both['seconds'] == pytest.approx(2 * copies * (7 + 8 * 25) / 1e9)
    heading = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('|'))
    assert [cell.strip() for cell in heading.split('|')][-3:-1] == [
        'two convolutions',
        'one convolution',
    ]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_stand_alone_attention(tool: ModuleType, dtype: str, tmp_path: Path) -> None:
    out = tmp_path / 'out.json'
    shapes = ('--shapes', '--scan-shapes', '--stand-alone-shapes', '9x12,2,5,8')
    tool.main([*SMALL, *shapes, '--dtype', dtype, '--out', str(out)])
    results = json.loads(out.read_text())['results']
    assert {r['op'] for r in results} == {'stand_alone_attention'}
    assert [r['way'] for r in results] == ['ours', 'ours', 'unfold', 'unfold']
    forward, both, *_ = results
    work = 4 * 9 * 12 * 2 * 8 * 25 / 1e9
    assert forward['gflops'] * forward['seconds'] == pytest.approx(work)
    assert both['gflops'] * both['seconds'] == pytest.approx(3.5 * work)


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--device', 'cuda:99'], "error: device 'cuda:99' cannot be used: "),
        ([*SMALL, '--shapes', '9x12,2,4,1'], 'error: kernel_size must be odd and positive, got'),
    ],
)
def test_one_line_errors(tool: ModuleType, argv: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f'^{message}'):
        tool.main(argv)


def test_replays_are_timed_beside_calls(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On CUDA; here a replay is the call itself."""

    def replay_of(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
        if len(replayed) == 1:
            raise RuntimeError('operation not permitted when stream is capturing\nmore')
        replayed.append(run)
        return run

    replayed: list[Callable[[], object]] = []
    monkeypatch.setattr(operators, 'replay_of', replay_of)
    out = tmp_path / 'out.json'
    tool.main([*SMALL, '--baselines', '--out', str(out)])
    results = json.loads(out.read_text())['results']
    timed, *others = [r for r in results if 'skipped' not in r]
    assert timed['replay_seconds'] > 0
    assert len(timed['replay_samples']) == len(timed['samples'])
    assert {r['not_replayed'] for r in others} == {
        'operation not permitted when stream is capturing'
    }
    assert 'replayed, ms' in capsys.readouterr().out


def test_no_replays_on_a_cpu() -> None:
    assert timing.replay_of(lambda: None, torch.device('cpu')) is None


@pytest.mark.cuda
def test_replay_repeats_the_call() -> None:
    device = torch.device('cuda')
    left, right, result = torch.randn(3, 64, 64, device=device)
    replay = timing.replay_of(lambda: torch.mm(left, right, out=result), device)
    left.mul_(2)
    replay()
    assert torch.equal(result, torch.mm(left, right))
