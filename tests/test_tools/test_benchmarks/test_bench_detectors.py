"""tools/benchmarks/bench_detectors.py on tiny models and a stand-in for a file."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_data
import torch
from tiny_data import DETECTION, quick  # noqa: F401
from torch import Tensor

from mmlocalattn.export.run_file import ExportedFile

pytestmark = pytest.mark.usefixtures('quick')


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import bench_detectors
    from benchmarking import timing

    monkeypatch.setattr(timing, 'BLOCK_SECONDS', 0.0)
    monkeypatch.setenv('MMLOCALATTN_KEEP_MEMORY', '0')
    return bench_detectors


def exported(path: str) -> ExportedFile:
    def run(image: Tensor) -> tuple[Tensor, ...]:
        return torch.zeros(1, 100, 4), torch.zeros(1, 100), torch.zeros(1, 100)

    meta = dict(sizes=[(64, 64)], outputs=('boxes', 'scores', 'labels'))
    return ExportedFile(Path(path), meta, run)


def test_detectors_and_files(
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from torchvision.models import detection

    def small(**given: Any) -> torch.nn.Module:
        return detection.maskrcnn_resnet50_fpn_v2(
            **given, rpn_post_nms_top_n_test=50, box_detections_per_img=5
        )

    from benchmarking import detectors

    monkeypatch.setattr(detectors, 'maskrcnn_resnet50_fpn_v2', small)
    monkeypatch.setattr('mmlocalattn.export.run_file.load_file', exported)
    ours = tiny_data.write_config(tmp_path / 'ours.py', DETECTION, tmp_path)
    other = tiny_data.write_config(tmp_path / 'other.py', DETECTION, tmp_path)
    out = tmp_path / 'out.json'
    sizes = ['--size', '64x64', '64x96', '--threads', '1', '--rounds', '1', '--out', str(out)]
    tool.main(['--configs', ours, '--others', other, '--files', 'small.onnx', *sizes])
    results = json.loads(out.read_text())['results']
    theirs = 'torchvision maskrcnn_resnet50_fpn_v2'
    assert [(r['detector'], r['size'][1]) for r in results] == [
        *(('ours', 64), ('other', 64), (theirs, 64), ('small', 64)),
        *(('ours', 96), ('other', 96), (theirs, 96)),  # not the size of the file
    ]
    assert [r['objects'] for r in results[:4]] == [5, 5, 5, 100]
    assert results[0]['gflop'] == results[1]['gflop'] > 0
    assert results[3]['runtime'] == 'onnxruntime'
    text = capsys.readouterr().out
    assert 'batch 1, float32, 1 threads' in text
    assert '| small ' in text


def test_missing_file(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: exported file '.*no\.onnx' does not exist"):
        tool.main(['--configs', '--others', '--files', str(tmp_path / 'no.onnx')])
