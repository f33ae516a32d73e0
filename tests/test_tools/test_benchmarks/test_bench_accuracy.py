"""tools/benchmarks/bench_accuracy.py: its configs, and that what is done is not done again."""

import copy
import json
from pathlib import Path

import bench_accuracy
import pytest
from benchmarking import accuracy
from benchmarking.accuracy import BACKBONES, METRICS, PARAMETERS, make_config, with_interval
from benchmarking.tool_runs import StepFailed


@pytest.mark.parametrize('name', BACKBONES)
def test_backbones_are_of_one_size_and_differ_in_nothing_else(name: str, tmp_path: Path) -> None:
    from mmengine.registry import MODELS, init_default_scope

    cfg, other = (make_config(which, tmp_path, 1) for which in (name, 'SSViT'))
    init_default_scope('mmdet')
    model = MODELS.build(copy.deepcopy(cfg.model))
    number = sum(parameter.numel() for parameter in model.backbone.parameters())
    assert number == pytest.approx(PARAMETERS, rel=0.1)
    assert 'Pretrained' not in str(model.backbone.init_cfg)
    channels = cfg.model.neck.pop('in_channels')
    assert len(channels) == len(other.model.neck.pop('in_channels'))
    cfg.model.pop('backbone')
    other.model.pop('backbone')
    assert cfg.to_dict() == other.to_dict()


def test_what_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def run(threads: int, log: Path, tool: str, *options: object) -> dict[str, float]:
        calls.append('/'.join(log.parent.parts[-2:]))
        if calls[-1] == 'nat/1' and calls.count('nat/1') == 1:
            raise StepFailed('error: it was stopped')
        for number in (1, 2):
            folder = log.parent / 'train' / f'2026_{number}' / 'vis_data'
            folder.mkdir(parents=True)
            score = 0.2 * number + 0.1 * int(log.parent.name)
            lines = [dict(loss=1.0), dict.fromkeys(METRICS, score)]
            (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
        return dict(seconds=1.0, cpu_seconds=90.0, peak_bytes=3e6)

    monkeypatch.setattr(accuracy, 'run_tool', run)
    monkeypatch.setattr(accuracy, 'write_digit_cards', lambda folder, *_: folder.mkdir())
    argv = ['--backbones', 'SSViT', 'NAT', '--seeds', '2', '--work-dir', str(tmp_path)]
    with pytest.raises(SystemExit, match='not trained: NAT'):
        bench_accuracy.main(argv)
    assert calls == ['ssvit/0', 'nat/0', 'ssvit/1', 'nat/1']
    assert _row('NAT', capsys.readouterr().out) == ['40.0', '40.0', '1', '1.5']
    bench_accuracy.main(argv)
    assert calls[4:] == ['nat/1']
    assert _row('NAT', capsys.readouterr().out) == ['45.0 ± 63.5', '45.0 ± 63.5', '2', '1.5']
    bench_accuracy.main([*argv, '--table'])
    assert len(calls) == 5
    with pytest.raises(SystemExit, match="--backbones 'Foo': there are SSViT, "):
        bench_accuracy.main(['--backbones', 'Foo'])


def _row(name: str, table: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f'| {name} ')]
    return [cell.strip() for cell in line.split('|')[2:-1]]


def test_interval() -> None:
    assert with_interval([50.0]) == '50.0'
    assert with_interval([50.0, 52.0, 54.0]) == '52.0 ± 5.0'  # 4.303 * 2 / sqrt(3)
