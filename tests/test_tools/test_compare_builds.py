"""tools/dev/compare_builds.py: a build beside itself, beside slower and wrong ones."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import tiny_data

PACKAGE = tiny_data.ROOT / 'mmlocalattn'
TINY = 'neighborhood_attention 14x14,16,7,1 float32 forward'

# A checkout whose package is the real one, with another neighborhood_attention.
STUB = """
import time

__version__ = '0'
__path__ = [{package!r}]
from mmlocalattn.ops import neighborhood

real = neighborhood.neighborhood_attention


def changed(*args):
    {change}


neighborhood.neighborhood_attention = changed
"""


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    path = tiny_data.ROOT / 'tools' / 'dev' / 'compare_builds.py'
    spec = importlib.util.spec_from_file_location('compare_builds', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def build() -> Path:
    if not any(PACKAGE.glob('_ext*.so')):
        pytest.skip('this checkout has no built extension to compare')
    return tiny_data.ROOT


def stub(folder: Path, change: str) -> Path:
    package = folder / 'mmlocalattn'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text(STUB.format(package=str(PACKAGE), change=change))
    (package / '_ext.so').touch()
    return folder


def quick(old: Path, new: Path, *more: str) -> list[str]:
    argv = [str(old), str(new), '--filter', f'^{TINY}$', '--isa', 'portable', '--threads', '1']
    return [*argv, '--rounds', '2', '--seconds-per-case', '0.02', *more]


def test_itself(
    tool: ModuleType, build: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out.json'
    assert tool.main(quick(build, build, '--json', str(out), '--limit', '100')) == 0
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


def test_every_instruction_set_by_default(tool: ModuleType, build: Path, tmp_path: Path) -> None:
    args = tool.parse_args([str(build), str(build)])
    *_, last = tool.instruction_sets(args, tmp_path)
    assert last == 'portable'


def test_slower(
    tool: ModuleType, build: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is timed again, for longer, before it counts."""
    slow = stub(tmp_path / 'slow', 'time.sleep(0.02); return real(*args)')
    out = tmp_path / 'out.json'
    assert tool.main(quick(build, slow, '--json', str(out), '--confirm', '2')) == 1
    record = json.loads(out.read_text())
    assert record['slower'] == [f'portable {TINY}']
    (case,) = record['runs'][0]['cases']
    assert case['ratio'] > 1.03
    assert case['first']['ratio'] > 1.03
    assert len(case['first']['new_rounds']) == 2
    assert len(case['new_rounds']) > 2
    assert '| SLOWER at first ' in capsys.readouterr().out


def test_slower_at_first_only(tool: ModuleType, build: Path, tmp_path: Path) -> None:
    change = "changed.calls = getattr(changed, 'calls', 0) + 1\n"
    change += '    if changed.calls < 8: time.sleep(0.1)\n    return real(*args)'
    slow = stub(tmp_path / 'slow', change)
    argv = quick(build, slow, '--confirm', '4', '--limit', '5')
    assert tool.main(argv) == 0


def test_faster(tool: ModuleType, build: Path, tmp_path: Path) -> None:
    slow = stub(tmp_path / 'slow', 'time.sleep(0.02); return real(*args)')
    assert tool.main(quick(slow, build)) == 0


@pytest.mark.parametrize(
    'change', ['return real(*args) * (1 + 2e-5)', 'return real(*args) * float("nan")']
)
def test_wrong_result(tool: ModuleType, build: Path, tmp_path: Path, change: str) -> None:
    wrong, out = stub(tmp_path / 'wrong', change), tmp_path / 'out.json'
    with pytest.raises(SystemExit, match=rf'wrong disagrees with .* on {TINY}: off by'):
        tool.main(quick(build, wrong, '--json', str(out)))
    assert not out.exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ('raise ValueError("no\\nmore")', 'ValueError: no$'),
        ('import os; os._exit(1)', 'ended: it said nothing$'),
        ('import sys, os; print("last words", file=sys.stderr); os._exit(1)', 'last words$'),
    ],
)
def test_side_fails(
    tool: ModuleType, build: Path, tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(SystemExit, match=f'^error: .*broken.*{message}'):
        tool.main(quick(build, stub(tmp_path / 'broken', change)))


def test_other_package_is_refused(tool: ModuleType, build: Path, tmp_path: Path) -> None:
    other = tmp_path / 'other'
    stub(other, 'return real(*args)')
    init = other / 'mmlocalattn' / '__init__.py'
    init.write_text(init.read_text() + f'__file__ = {str(PACKAGE / "__init__.py")!r}\n')
    with pytest.raises(SystemExit, match=r'was imported instead of .*other/mmlocalattn$'):
        tool.main(quick(build, other))


def test_bad_folders(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match='nowhere is no checkout of mmlocalattn: name a folder'):
        tool.main([str(tmp_path / 'nowhere'), str(tmp_path)])
    package = tmp_path / 'mmlocalattn'
    package.mkdir()
    (package / '__init__.py').touch()
    with pytest.raises(
        SystemExit, match=r'has no built extension .* run `bash tools/setup_env.sh`'
    ):
        tool.main([str(tmp_path), str(tmp_path)])


def test_bad_arguments(
    tool: ModuleType, build: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r'avx1024 cannot be used here, choose one of: .*portable'):
        tool.main([*quick(build, build), '--isa', 'avx1024'])
    with pytest.raises(SystemExit, match='--filter matches no case; one of the names is: neigh'):
        tool.main([*quick(build, build), '--filter', 'nothing'])
    with pytest.raises(SystemExit, match=r'there is no folder for .*out.json'):
        tool.main(quick(build, build, '--json', str(tmp_path / 'none' / 'out.json')))
    for option, value, message in (
        ('--filter', '(', 'is no regular expression'),
        ('--rounds', '0', 'is no positive number'),
    ):
        with pytest.raises(SystemExit):
            tool.main(quick(build, build, option, value))
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
