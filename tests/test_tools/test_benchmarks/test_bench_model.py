"""tools/benchmarks/bench_model.py on tiny models."""

import copy
import json
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import tiny_data
import torch
from tiny_data import CLASSIFICATION, DETECTION, SEGMENTATION, quick  # noqa: F401

pytestmark = pytest.mark.usefixtures('quick')


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import bench_model
    from benchmarking import timing

    monkeypatch.setattr(timing, 'BLOCK_SECONDS', 0.0)
    return bench_model


def write(folder: Path, name: str, text: str) -> str:
    return tiny_data.write_config(folder / f'{name}.py', text, folder)


def test_backbones_in_turns(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write(tmp_path, 'first', DETECTION), write(tmp_path, 'second', SEGMENTATION)
    out = tmp_path / 'out.json'
    sizes = ['--size', '64x64', '32x96']
    tool.main([first, '--baseline', second, *sizes, '--rounds', '2', '--out', str(out)])
    results = json.loads(out.read_text())['results']
    expected = [(n, s) for s in ([64, 64], [32, 96]) for n in ('first', 'second')]
    assert [(r['config'], r['size']) for r in results] == expected
    assert all(len(r['samples']) == 2 for r in results)
    assert results[0]['images_per_second'] == pytest.approx(1 / results[0]['seconds'])
    assert results[0]['gflop'] == results[1]['gflop'] > 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith('| ')][2:] == [
        name for name, _ in expected
    ]


def test_baseline_of_mmdet(tool: ModuleType, tmp_path: Path) -> None:
    first = write(tmp_path, 'first', DETECTION)
    second = tmp_path / 'second.py'
    second.write_text(
        "default_scope = 'mmdet'\nmodel = dict(backbone=dict(type='ResNet', depth=18))\n"
    )
    out = tmp_path / 'out.json'
    argv = [first, '--baseline', str(second), '--size', '32x32', '--rounds', '1']
    tool.main([*argv, '--out', str(out)])
    parameters = [result['parameters'] for result in json.loads(out.read_text())['results']]
    assert parameters[1] == 11_176_512  # ResNet-18 without its classifier


@pytest.mark.parametrize('mode', ['', '--train'])
@pytest.mark.parametrize(
    'text', [DETECTION, SEGMENTATION, CLASSIFICATION], ids=['mmdet', 'mmseg', 'mmpretrain']
)
def test_whole_models(
    tool: ModuleType, tmp_path: Path, text: str, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, 'tiny', text)
    argv = [config, '--whole', '--size', '64x96', '--batch', '2', '--rounds', '1', mode]
    tool.main([argument for argument in argv if argument])
    out = capsys.readouterr().out
    assert f'model, {"forward and backward" if mode else "forward"}, batch 2, float32' in out
    assert '| 64 x 96 |' in out


def test_backward_of_a_backbone_and_its_profile(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, 'tiny', DETECTION)
    tool.main([config, '--backward', '--size', '64x64', '--rounds', '1', '--profile'])
    out = capsys.readouterr().out
    assert 'backbone, forward and backward' in out
    ratio = r'^tiny: forward alone [\d.]+ s, with backward [\d.]+ times as long$'
    assert re.search(ratio, out, re.M)
    assert 'mmlocalattn::_sparse_scan_attention_backward' in out


def test_autocast(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = set()
    linear = torch.nn.Linear.forward

    def forward(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        output = linear(self, x)
        dtypes.add(output.dtype)
        return output

    monkeypatch.setattr(torch.nn.Linear, 'forward', forward)
    config = write(tmp_path, 'tiny', DETECTION)
    tool.main([config, '--dtype', 'bfloat16', '--size', '32x32', '--rounds', '1'])
    assert dtypes == {torch.bfloat16}


def test_compiled_beside_eager(
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = []

    def leave(model: torch.nn.Module, **given: object) -> torch.nn.Module:
        options.append(given)
        return model

    def spoil(model: torch.nn.Module, **given: object) -> torch.nn.Module:
        model = copy.deepcopy(model)
        model.output_norms['3'].weight.data *= 1.01
        return model

    monkeypatch.setattr(torch, 'compile', leave)
    config, out = write(tmp_path, 'tiny', DETECTION), tmp_path / 'out.json'
    argv = [config, '--compile', '--size', '64x64', '--rounds', '1', '--out', str(out)]
    tool.main(argv)
    eager, compiled = json.loads(out.read_text())['results']
    assert (eager['config'], compiled['config']) == ('tiny', 'tiny, compiled')
    assert options == [{'fullgraph': True, 'dynamic': False}]
    assert eager['gflop'] == compiled['gflop'] > 0
    text = capsys.readouterr().out
    assert 'tiny, 64 x 64: 0 s to the first outputs' in text
    assert '| tiny, compiled |' in text
    monkeypatch.setattr(torch, 'compile', spoil)
    with pytest.raises(SystemExit, match=r'compiled and eager maps of \(64, 64\) differ by'):
        tool.main(argv)
    with pytest.raises(SystemExit):
        tool.main([*argv, '--whole'])


def test_missing_config(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r'error: config .* does not exist'):
        tool.main(['no_such_config.py'])


def test_unusable_device(tool: ModuleType, tmp_path: Path) -> None:
    config = write(tmp_path, 'tiny', DETECTION)
    with pytest.raises(SystemExit, match=r"^error: device 'cuda:99' cannot be used: "):
        tool.main([config, '--device', 'cuda:99'])


def test_shares_of_a_detector_beside_as_built(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = write(tmp_path, 'tiny', DETECTION), tmp_path / 'out.json'
    sizes = ['--size', '64x96', '--rounds', '2']
    tool.main([config, '--whole', '--beside-untuned', *sizes, '--out', str(out)])
    content = json.loads(out.read_text())
    tuned, as_built = content['results']
    assert (tuned['config'], as_built['config']) == ('tiny', 'tiny, as built')
    assert tuned['matrix_product_gflops'] > 0
    assert content['limits'] == {}
    for record in (tuned, as_built):
        assert len(record['samples']) == 2
        assert (record['proposals'], record['objects']) == (20, 5)
        assert sum(record['shares'].values()) == pytest.approx(1)
        assert {'RoIAlign for bbox', 'rpn head: boxes and NMS', 'mask head', 'neck'} <= {
            *record['shares']
        }
        assert record['shares']['backbone: our attention'] > 0
    assert as_built['share_of_same_objects'] == 1
    text = capsys.readouterr().out
    assert '| tiny, as built |' in text
    assert '| backbone: convolutions ' in text
    assert 'tiny, as built: 5 objects, 100 % the same within 1e-4 (of the longer side)' in text


def test_beside_untuned_needs_a_whole_model(tool: ModuleType) -> None:
    for argv in (['--beside-untuned'], ['--beside-untuned', '--whole', '--device', 'cuda']):
        with pytest.raises(SystemExit):
            tool.parse_args(['config.py', *argv])


def test_share_of_same_objects() -> None:
    from benchmarking.detections import share_of_same
    from mmengine.structures import InstanceData

    def sample(**objects: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(img_shape=(10, 10), pred_instances=InstanceData(**objects))

    boxes, scores = torch.rand(4, 4), torch.rand(4)
    labels = torch.arange(4)
    one = [sample(bboxes=boxes, scores=scores, labels=labels)]
    order = torch.tensor([1, 0, 3, 2])
    other = [sample(bboxes=boxes[order] + 1e-5, scores=scores[order], labels=labels[order])]
    assert share_of_same(one, other) == 1
    other[0].pred_instances.bboxes[0] += 0.1
    other[0].pred_instances.scores[1] += 0.1
    other[0].pred_instances.labels[2] = 0
    assert share_of_same(one, other) == 0.25
