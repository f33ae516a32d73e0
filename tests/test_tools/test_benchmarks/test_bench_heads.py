"""tools/benchmarks/bench_heads.py: its configs, and that what is done is not done again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import bench_heads
import pytest
from benchmarking import heads_run, tool_runs
from benchmarking.heads import BACKBONES, DIMS, FAMILIES, make_config
from benchmarking.tool_runs import StepFailed, run_tool

from mmlocalattn.export.detectors import whole_detector
from mmlocalattn.training import build_errors

ROOT = Path(__file__).parents[3]
CERTIFICATE = dict(
    metrics={'coco/bbox_mAP': dict(model=0.5, file=0.5)},
    matched=dict(share=1.0),
    latency_ms=dict(model=dict(median=20.0), file=dict(median=30.0)),
)


@pytest.mark.parametrize('name', FAMILIES)
def test_a_family_can_be_exported(name: str, tmp_path: Path) -> None:
    from mmengine.registry import MODELS, init_default_scope

    family = FAMILIES[name]
    cfg = make_config(name, tmp_path, None)
    init_default_scope('mmdet')
    with build_errors(cfg.filename):
        model = MODELS.build(cfg.model)
    assert whole_detector(model).output_names[:3] == ('boxes', 'scores', 'labels')
    assert model.backbone.out_channels == tuple(DIMS[-family.levels :])
    assert f'mmlocalattn.{type(model.backbone).__name__}' == BACKBONES[family.backbone]['type']
    start = FAMILIES[family.start] if family.start else family
    assert start.backbone == family.backbone
    assert cfg.val_evaluator.ann_file == f'{tmp_path}/annotations/instances_val.json'


def test_what_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    fails = True

    def run(threads: int, log: Path, tool: str, *options: object) -> dict[str, float]:
        calls.append(f'{log.parent.name} {log.stem}')
        if tool == 'train.py':
            (log.parent / 'train').mkdir()
            (log.parent / 'train' / 'last_checkpoint').write_text('epoch_1.pth')
        elif log.stem == 'pt2' and fails:
            raise StepFailed('error: it differs')
        return dict(seconds=1.0, cpu_seconds=2.0, peak_bytes=3e6)

    monkeypatch.setattr(heads_run, 'run_tool', run)
    monkeypatch.setattr(heads_run, 'write_digit_cards', lambda folder, *_: folder.mkdir())
    file = SimpleNamespace(meta=dict(certificate=CERTIFICATE))
    monkeypatch.setattr(heads_run, 'load_file', lambda path: file)
    argv = ['--families', 'Deformable DETR', '--work-dir', str(tmp_path)]
    bench_heads.main(argv)
    assert calls == [
        'retinanet train',
        *(f'retinanet {name}' for name in FAMILIES['RetinaNet'].formats),
        'deformable_detr train',
        'deformable_detr onnx',
        'deformable_detr pt2',
    ]
    assert '| Deformable DETR, NAT' in (printed := capsys.readouterr().out)
    assert printed.count('refused') >= 2
    calls.clear()
    fails = False
    bench_heads.main(argv)
    assert calls == ['deformable_detr pt2']
    records = json.loads((tmp_path / 'heads.json').read_text())
    assert records['Deformable DETR']['formats']['pt2']['certificate'] == CERTIFICATE
    bench_heads.main([*argv, '--table'])
    assert len(calls) == 1
    with pytest.raises(SystemExit, match="--families 'Foo': there are Mask R-CNN, "):
        bench_heads.main(['--families', 'Foo'])


def test_a_step_runs_in_a_copy_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(options: list[str]) -> None:
        print('began')
        raise SystemExit(f'error: no {options[0]}' if options[0] else None)

    monkeypatch.setattr(tool_runs, '_main_of', lambda tool: main)
    log = tmp_path / 'log'
    assert run_tool(1, log, 'tool.py', '')['peak_bytes'] > 1e6
    with pytest.raises(StepFailed, match=r'^tool\.py: error: no file \('):
        run_tool(1, log, 'tool.py', 'file')
    assert log.read_text() == 'began\nerror: no file\n'


@pytest.mark.parametrize('benchmark', ['bench_heads', 'bench_accuracy'])
def test_copies_of_the_process_may_have_threads(benchmark: str, tmp_path: Path) -> None:
    """OpenMP gives them none where their parent has used some."""
    script = f"""
import {benchmark}

{benchmark}.main(['--table', '--work-dir', {str(tmp_path)!r}])

from pathlib import Path

import torch
from benchmarking import tool_runs

tool_runs._main_of = lambda tool: lambda options: torch.randn(10**6).exp()
tool_runs.run_tool(2, Path({str(tmp_path / 'log')!r}), 'tool.py')
"""
    folders = [str(ROOT / 'tools' / 'benchmarks'), str(ROOT)]
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(folders), 'OMP_NUM_THREADS': '2'}
    subprocess.run([sys.executable, '-c', script], env=env, check=True, timeout=120)
