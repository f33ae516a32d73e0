"""tools/dev/compare_builds.py: a build beside itself, beside slower and wrong ones.

A few tests start real processes; most replace the worker by one that answers what they say.
"""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import pytest
import tiny_data
import torch

from mmlocalattn.ops import OPS

PACKAGE = tiny_data.ROOT / 'mmlocalattn'
TINY = 'neighborhood_attention 14x14,16,7,1 float32 forward'

# A checkout whose package is the real one, with another neighborhood_attention.
STUB = """
import time

__version__ = '0'
__path__ = [{package!r}]
from mmlocalattn.ops import neighborhood

real = neighborhood.neighborhood_attention
neighborhood.neighborhood_attention = lambda *args: {change}
"""

# Of each method the first answer, the second, ..., and the last one again and again.
FAKE_WORKER = """
import json, os, pathlib, sys

assert os.environ['MALLOC_MMAP_MAX_'] == '0'
answers = json.loads(pathlib.Path(os.environ['PYTHONPATH'], 'answers.json').read_text())
for line in sys.stdin:
    method, _ = json.loads(line)
    answer = answers[method][0]
    if len(answers[method]) > 1:
        del answers[method][0]
    if isinstance(answer, str):
        sys.exit(answer)
    print(json.dumps(answer), flush=True)
"""


def load(name: str) -> ModuleType:
    path = tiny_data.ROOT / 'tools' / 'dev' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool() -> ModuleType:
    return load('compare_builds')


@pytest.fixture
def build() -> Path:
    if not any(PACKAGE.glob('_ext*.so')):
        pytest.skip('this checkout has no built extension to compare')
    return tiny_data.ROOT


def make_checkout(folder: Path, init: str = '') -> Path:
    package = folder / 'mmlocalattn'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text(init)
    (package / '_ext.so').touch()
    return folder


def stub(folder: Path, change: str) -> Path:
    return make_checkout(folder, STUB.format(package=str(PACKAGE), change=change))


@pytest.fixture
def sides(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two checkouts with fake workers."""
    worker = tmp_path / 'worker.py'
    worker.write_text(FAKE_WORKER)
    monkeypatch.setattr(tool, 'WORKER', worker)
    return [fake(make_checkout(tmp_path / name)) for name in ('old', 'new')]


def fake(folder: Path, **answers: list) -> Path:
    """Say what the worker of a checkout answers."""
    cases = {'product': 'control', 'attention': 'an operator', 'ssvit': 'model'}
    description = dict(package=f'{folder}/mmlocalattn', version='0', torch='2', threads=1)
    results = dict(
        describe=[description | dict(cases=cases, matrix_gflop=1.0)],
        instruction_sets=[['avx2', 'portable']],
        prepare=[dict(seconds=0.01, error=0.0, tolerance=1e-5)],
        time=[[0.01, 0.01]],
    )
    for method, values in (results | answers).items():
        results[method] = [v if is_raw(v) else {'result': v} for v in values]
    (folder / 'answers.json').write_text(json.dumps(results))
    return folder


def is_raw(answer: object) -> bool:
    """Last words, or a failure."""
    return isinstance(answer, str) or (isinstance(answer, dict) and 'failure' in answer)


def arguments(old: Path, new: Path, *more: str) -> list[str]:
    quick = ['--threads', '1', '--rounds', '2', '--seconds-per-case', '0.02']
    return [str(old), str(new), '--isa', 'portable', *quick, *more]


def test_itself(
    tool: ModuleType, build: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out.json'
    options = ['--filter', f'^{TINY}$', '--json', str(out), '--limit', '100']
    assert tool.main(arguments(build, build, *options)) == 0
    record = json.loads(out.read_text())
    assert list(tmp_path.iterdir()) == [out]
    assert record['cpu']
    assert record['slower'] == []
    (run,) = record['runs']
    assert (run['isa'], run['threads']) == ('portable', 1)
    assert run['sgemm_gflops'] > 0
    (case,) = run['cases']
    assert case['name'] == TINY
    assert case['error'] == 0
    assert len(case['old_rounds']) == len(case['new_rounds']) == 2
    assert case['calls'] >= 1
    assert case['ratio_of_medians'] == pytest.approx(case['new_seconds'] / case['old_seconds'])

    text = capsys.readouterr()
    assert f'] {TINY}: ' in text.err
    table = [line for line in text.out.splitlines() if line.startswith('|')]
    assert [cell.strip() for cell in table[2].split('|')][1] == TINY
    assert len({len(line) for line in table}) == 1


def test_slower(
    tool: ModuleType, build: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is timed again, for longer, before it counts."""
    slow, out = stub(tmp_path / 'slow', '(time.sleep(0.02), real(*args))[1]'), tmp_path / 'out.json'
    options = ['--filter', f'^{TINY}$', '--json', str(out), '--confirm', '2']
    assert tool.main(arguments(build, slow, *options)) == 1
    record = json.loads(out.read_text())
    assert record['slower'] == [f'portable {TINY}']
    (case,) = record['runs'][0]['cases']
    assert case['ratio'] > 1.03
    assert case['first']['ratio'] > 1.03
    assert len(case['first']['new_rounds']) == 2
    assert len(case['new_rounds']) > 2
    assert '| SLOWER at first ' in capsys.readouterr().out


def test_wrong_result(tool: ModuleType, build: Path, tmp_path: Path) -> None:
    wrong, out = stub(tmp_path / 'wrong', 'real(*args) * (1 + 2e-5)'), tmp_path / 'out.json'
    with pytest.raises(SystemExit, match=rf'wrong disagrees with .* on {TINY}: off by 2.0e-05'):
        tool.main(arguments(build, wrong, '--filter', f'^{TINY}$', '--json', str(out)))
    assert not out.exists()


def test_slower_at_first_only(
    tool: ModuleType, sides: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = sides
    fake(new, time=[[0.01], [0.01], [0.02], [0.02], [0.01]])  # the control first
    options = ['--no-model']
    assert tool.main(arguments(old, new, *options)) == 0
    assert ' at first 2.000 |' in capsys.readouterr().out
    assert tool.main(arguments(old, new, *options, '--confirm', '0')) == 1
    assert tool.main(arguments(old, new, *options, '--limit', '2.1')) == 0
    assert tool.main(arguments(new, old, *options)) == 0


def test_busy_machine(
    tool: ModuleType,
    sides: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, 'getloadavg', lambda: (0.0, 9.0, 9.0))
    tool.main(arguments(*sides))
    assert 'busy' not in capsys.readouterr().err
    monkeypatch.setattr(os, 'getloadavg', lambda: (999.0, 9.0, 9.0))
    tool.main(arguments(*sides))
    assert 'the machine is busy (load 999.0, ' in capsys.readouterr().err


def test_control_is_no_case(tool: ModuleType, sides: list[Path], tmp_path: Path) -> None:
    old, new = sides
    out = tmp_path / 'out.json'
    fake(new, time=[[0.03], [0.03], [0.01]])
    assert tool.main(arguments(old, new, '--json', str(out))) == 0
    (run,) = json.loads(out.read_text())['runs']
    assert run['control']['ratio'] == pytest.approx(3)
    assert run['sgemm_gflops'] == pytest.approx(1 / 0.02)
    assert [case['name'] for case in run['cases']] == ['attention', 'ssvit']


def test_threads_must_be_the_same(tool: ModuleType, sides: list[Path]) -> None:
    old, new = sides
    other = dict(package=f'{new}/mmlocalattn', torch='2', threads=2)
    fake(new, describe=[other])
    with pytest.raises(SystemExit, match='error: the sides do not have the same torch and threads'):
        tool.main(arguments(old, new))


def test_instruction_sets_of_both(
    tool: ModuleType,
    sides: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old, new = sides
    fake(new, instruction_sets=[['avx512', 'avx2', 'portable']])
    out = tmp_path / 'out.json'
    assert tool.main([str(old), str(new), '--rounds', '1', '--json', str(out)]) == 0
    assert [run['isa'] for run in json.loads(out.read_text())['runs']] == ['avx2', 'portable']
    assert 'avx512 is left out: only one of the builds has it' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('answers', 'message'),
    [
        (dict(describe=['']), 'the process of .*new ended: it said nothing$'),
        (dict(time=['one\nlast words']), 'the process of .*new ended: last words$'),
        (dict(describe=[dict(failure='OSError: no')]), 'new: OSError: no$'),
        (dict(prepare=[dict(failure='OSError: no')]), r'new \(product\): OSError: no$'),
        (dict(describe=[dict(package='/another')]), '/another was imported instead of .*new/mmlo'),
        (
            dict(prepare=[dict(error=float('inf'), tolerance=1e-5)]),
            'new disagrees with .*old on product: off by inf',
        ),
    ],
)
def test_side_fails(
    tool: ModuleType, sides: list[Path], answers: dict[str, list], message: str
) -> None:
    old, new = sides
    fake(new, **answers)
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        tool.main(arguments(old, new))


def test_bad_folders(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match='nowhere is no checkout of mmlocalattn: name a folder'):
        tool.main([str(tmp_path / 'nowhere'), str(tmp_path)])
    (make_checkout(tmp_path) / 'mmlocalattn' / '_ext.so').unlink()
    with pytest.raises(
        SystemExit, match=r'has no built extension .* run `bash tools/setup_env.sh`'
    ):
        tool.main([str(tmp_path), str(tmp_path)])


def test_bad_arguments(
    tool: ModuleType, sides: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match='--filter matches no case; one of the names is: atten'):
        tool.main(arguments(*sides, '--filter', 'nothing'))
    with pytest.raises(SystemExit, match=r'there is no folder for .*out.json'):
        tool.main(arguments(*sides, '--json', str(tmp_path / 'none' / 'out.json')))
    for option, value, message in (
        ('--filter', '(', 'is no regular expression'),
        ('--rounds', '0', 'is no positive number'),
        ('--seconds-per-case', '-1', 'is no positive number'),
    ):
        with pytest.raises(SystemExit):
            tool.main(arguments(*sides, f'{option}={value}'))
        assert message in capsys.readouterr().err


def test_summary(tool: ModuleType) -> None:
    steady = [[1.0, 1.1, 1.0]] * 3
    disturbed = [[1.0, 1.3, 1.2], [1.2, 1.3, 1.4], [1.1, 1.1, 1.1]]
    record = tool.summary(steady, disturbed, 1.03)
    assert record['ratio'] == record['ratio_of_medians'] == pytest.approx(1.2)
    assert record['ratio_of_minima'] == 1
    assert record['looks_slower']
    assert not record['slower']
    slower = [[1.04 * seconds for seconds in calls] for calls in steady]
    assert tool.summary(steady, slower, 1.03)['slower']
    assert not tool.summary(slower, steady, 1.03)['looks_slower']
    drift = [[1.0], [2.0], [3.0]], [[1.0], [2.0], [4.0]]  # the machine slows down
    assert tool.summary(*drift, 1.03)['ratio'] == 1


@pytest.mark.parametrize(
    ('seconds', 'plan'), [(0.001, (8, 250)), (0.5, (4, 1)), (3.0, (3, 1)), (0.25, (8, 1))]
)
def test_plan(tool: ModuleType, seconds: float, plan: tuple[int, int]) -> None:
    assert tool.plan(seconds, budget=2.0, rounds=8) == plan
    assert tool.plan(seconds, budget=2.0, rounds=1)[0] == 1


def test_order_of_sides(tool: ModuleType) -> None:
    asked = []

    class Side:
        def __init__(self, name: str) -> None:
            self.name = name

        def ask(self, method: str, calls: int) -> list[float]:
            asked.append(self.name)
            return [1.0] * calls

    samples = tool.time_in_turns([Side('a'), Side('b')], rounds=4, calls=2)
    assert ''.join(asked) == 'abbaabba'
    assert samples == [[[1.0, 1.0]] * 4] * 2


@pytest.mark.usefixtures('build')
def test_worker_tries_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    side = load('build_worker').Side()
    monkeypatch.setenv('MMLOCALATTN_CPU_ISA', 'avx1024')
    with pytest.raises(RuntimeError, match=r'avx1024 cannot be used here, choose one of: .*port'):
        side.describe()
    assert side.instruction_sets()[-1] == 'portable'
    assert 'MMLOCALATTN_CPU_ISA' not in os.environ
    assert TINY in side.describe()['cases']


SMALL = {
    'matrix_product': (3, 4),
    'neighborhood_attention': (5, 6, 2, 3, 1, True),
    'sparse_scan_attention': (9, 10, 2, 3, 3, 2),
    'slide_attention': (5, 6, 2, 3),
    'query_and_attend': (5, 6, 2, 3, 2),
    'stand_alone_attention': (5, 6, 2, 3, 8),
    'ssvit_tiny': (64, 32),
}
GRADIENTS = dict(zip(SMALL, (2, 4, 3, 6, 4, 5, 2)))
"""Those of the tensors, and one of all parameters."""


@pytest.mark.parametrize('backward', [False, True], ids=['forward', 'both'])
@pytest.mark.parametrize('name', SMALL)
def test_makers(name: str, backward: bool) -> None:
    worker = load('build_worker')
    makers = {maker.__name__.rstrip('_'): (kind, maker) for kind, maker, *_ in worker.TABLE}
    assert makers.keys() == SMALL.keys()
    kind, maker = makers[name]
    case = worker.Case(kind, lambda: maker(*SMALL[name]), 'float32', backward)
    results = [worker.make_run(case).result() for _ in range(2)]
    assert worker.relative_error(*results) <= worker.TOLERANCE['float32']
    outputs = 4 if kind == worker.MODEL else 1
    assert len(results[0]) == outputs + (GRADIENTS[name] if backward else 0)
    assert not any(tensor.isnan().any() for tensor in results[0])


def test_table() -> None:
    cases = load('build_worker').make_cases()
    assert TINY in cases
    titles = [name.split() for name in cases]
    assert all(len(words) == 4 for words in titles)
    operators = {words[0] for words in titles} - {'matrix_product', 'ssvit_tiny'}
    assert operators == set(OPS)
    assert {words[0] for words in titles if words[2] == 'bfloat16'} == operators
    assert any(words[2] == 'float64' for words in titles)


@pytest.mark.parametrize(
    ('actual', 'expected', 'error'),
    [
        ([1.0, -4.0], [1.0, -4.0], 0),
        ([1.0, -4.4], [1.0, -4.0], 0.1),
        ([0.0, 0.0], [0.0, 0.0], 0),
        ([1.0, float('nan')], [1.0, -4.0], float('inf')),
        ([1.0], [1.0, -4.0], float('inf')),
    ],
)
def test_relative_error(actual: list[float], expected: list[float], error: float) -> None:
    tensors = ([torch.tensor(values, dtype=torch.float64)] for values in (actual, expected))
    assert load('build_worker').relative_error(*tensors) == pytest.approx(error)
