"""bench_windows.py: every way computes what it says, the table, files, what is left out."""

import json
from pathlib import Path
from types import ModuleType

import matplotlib.image
import pytest
import torch
from benchmarking import timing, windows
from benchmarking.choices import WINDOW_BASELINES

SMALL = ('--height', '9', '--width', '12', '--heads', '2', '--windows', '3', '5', '--rounds', '1')


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import bench_windows

    monkeypatch.setattr(timing, 'BLOCK_SECONDS', 0.0)
    return bench_windows


def test_ways_agree(tool: ModuleType) -> None:
    args = tool.parse_args([])
    args.ways, args.device = [*windows.WAYS], torch.device(args.device)
    windows.check_all(args)


def test_ways_that_can_be_chosen() -> None:
    assert tuple(windows.WAYS) == (windows.OURS, *WINDOW_BASELINES)


@pytest.mark.parametrize('name', ['depthwise convolutions', 'unfold', 'Swin windows'])
def test_disagreement_is_an_error(
    tool: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = windows.WAYS[name]
    wrong = right._replace(run=lambda *tensors: right.run(*tensors) * 1.01)
    monkeypatch.setitem(windows.WAYS, name, wrong)
    with pytest.raises(SystemExit, match=f'error: {name} is off by'):
        tool.main(SMALL)


def test_swin_windows_that_fit_are_not_padded() -> None:
    setting = windows.Setting(10, 15, 2, 4, 1, 5, torch.float64, torch.device('cpu'))
    tensors = torch.randn(3, *setting.shape, dtype=torch.float64)
    expected = windows.WAYS['Swin windows'].definition(setting, *tensors)
    torch.testing.assert_close(windows.swin(setting, *tensors), expected)


def test_files_and_tables(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / 'out.json', tmp_path / 'plot.png'
    tool.main([*SMALL, '--out', str(out), '--plot', str(plot)])
    results = json.loads(out.read_text())['results']
    assert len({(r['window'], r['way'], r['pass']) for r in results}) == len(results) == 2 * 5 * 2
    assert all(r['seconds'] > 0 and r['peak_bytes'] >= 0 for r in results)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
    assert len(lines) == 2 * 4  # of each pass: heading, rule, two windows
    cells = [cell.strip() for cell in lines[2].split('|')]
    assert cells[1] == '3'
    assert cells[2].count(' ms') == 1
    assert 'x)' not in cells[2]
    assert all('x)' in cell for cell in cells[3:-1])
    assert matplotlib.image.imread(plot).std() > 0.1


def test_what_does_not_fit_is_left_out(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(windows, 'free_memory', lambda device: 1000)
    tool.main([*SMALL, '--forward-only'])
    assert capsys.readouterr().out.count('needs 0.0 GB, 0.0 GB are free') == 2


def test_chosen_ways(tool: ModuleType, capsys: pytest.CaptureFixture) -> None:
    tool.main([*SMALL, '--forward-only', '--ways', 'unfold'])
    text = capsys.readouterr().out
    assert 'query_and_attend' in text
    assert 'unfold' in text
    assert 'Swin windows' not in text


def test_one_line_errors(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^error: device 'cuda:99' cannot be used: "):
        tool.main([*SMALL, '--device', 'cuda:99'])
    with pytest.raises(SystemExit):
        tool.main(['--windows', '4'])
    assert "argument --windows: windows have a middle: '4' is even" in capsys.readouterr().err
