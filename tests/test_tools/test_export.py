"""tools/export.py on tiny models: what its files give, and that none is left that disagrees."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import onnx
import onnxruntime
import pytest
import tiny_data
import torch
from mmdet.models.necks import FPN
from tiny_data import CLASSIFICATION, DETECTION, SEGMENTATION, quick  # noqa: F401

from mmlocalattn.backbones.nat import NAT
from mmlocalattn.export.files import FeatureMaps, export, verify
from mmlocalattn.layers.window_attention import WindowAttention

pytestmark = pytest.mark.usefixtures('quick')

NARROW = {'embed_dims': (8,), 'depths': (1,), 'num_heads': (2,), 'mlp_ratios': (2,)}
SIZES = [(64, 96), (80, 64), (71, 50)]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(tiny_data.ROOT / 'tools'))
    monkeypatch.delitem(sys.modules, 'export', raising=False)
    import export

    return export


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    """Write a config with small windows and few blocks, so that it is converted in seconds."""
    small = """
model['backbone']['arch'].update(depths=[1, 1, 1, 1])
model['backbone'].update(scan=[dict(local_kernel=3, anchor_kernel=1)] * 4)
"""
    return lambda text: tiny_data.write_config(tmp_path / 'config.py', text, tmp_path, small)


def nat() -> FeatureMaps:
    torch.manual_seed(1)
    return FeatureMaps(NAT(NARROW, out_indices=(0,), kernel_size=3)).eval()


def test_pt2_in_a_fresh_process(tmp_path: Path) -> None:
    path, image = tmp_path / 'nat.pt2', torch.randn(3, 3, 75, 90)
    assert max(export(nat(), path, 'pt2', SIZES, {'part': 'backbone'})) < 1e-5
    torch.save(image, tmp_path / 'image.pt')
    script = """
import json, sys, torch, mmlocalattn.ops
files = {'mmlocalattn.json': ''}
program = torch.export.load(sys.argv[1] + '/nat.pt2', extra_files=files)
assert json.loads(files['mmlocalattn.json']) == {'part': 'backbone'}
assert 'mmlocalattn.neighborhood_attention' in program.graph_module.code
assert 'mmlocalattn.backbones' not in sys.modules
outputs = program.module()(torch.load(sys.argv[1] + '/image.pt'))
torch.save(list(outputs), sys.argv[1] + '/outputs.pt')
"""
    subprocess.run([sys.executable, '-c', script, tmp_path], cwd=tiny_data.ROOT, check=True)
    (actual,) = torch.load(tmp_path / 'outputs.pt')
    with torch.no_grad():
        (expected,) = nat()(image)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_torchscript_takes_its_size_only(tmp_path: Path) -> None:
    path = tmp_path / 'nat.pt'
    with pytest.raises(ValueError, match='images of one size'):
        export(nat(), path, 'torchscript', SIZES, {})
    assert not any(tmp_path.iterdir())
    assert max(export(nat(), path, 'torchscript', SIZES[:1], {})) < 1e-5
    loaded = torch.jit.load(path)
    assert verify(nat(), loaded, SIZES[0], 3) < 1e-5
    with pytest.raises(Exception, match='takes images of 64 x 96, got 80 x 64'):
        loaded(torch.randn(1, 3, 80, 64))


def test_onnx_of_position_biases(tmp_path: Path) -> None:
    path, image = tmp_path / 'nat.onnx', torch.randn(3, 3, 79, 66)
    assert max(export(nat(), path, 'onnx', SIZES, {})) < 1e-5
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    with torch.no_grad():
        expected = nat()(image)
    actual = [torch.from_numpy(a) for a in session.run(None, {'image': image.numpy()})]
    torch.testing.assert_close(actual, list(expected), rtol=1e-5, atol=1e-5)


def test_onnx_of_windows_that_grow_with_the_map(
    tool: ModuleType, config: Callable[[str], str], tmp_path: Path
) -> None:
    """Maps of 16 and 45 rows at least: 3 and 7 anchors."""
    out = tmp_path / 'ssvit.onnx'
    options = [f'model.backbone.arch.{key}=[{value[0]}]' for key, value in NARROW.items()]
    options += ['model.backbone.out_indices=[0]', 'model.backbone.scan=adaptive']
    argv = [config(DETECTION), '--random-weights', '--format', 'onnx', '--part', 'backbone']
    argv += ['--out', str(out), '--size', '64x96', '180x200', '75x130']
    tool.main([*argv, '--cfg-options', *options])
    model = onnx.load(out)
    assert {node.domain for node in model.graph.node} == {''}
    assert 'Loop' in {node.op_type for node in model.graph.node}
    (meta,) = (json.loads(p.value) for p in model.metadata_props if p.key == 'mmlocalattn')
    assert meta['part'] == 'backbone'


@pytest.mark.parametrize(
    ('text', 'shapes'),
    [
        (CLASSIFICATION, [(2, 2)]),
        (SEGMENTATION, [(2, 3, 64, 96)]),
        (DETECTION, [(2, 16, 64 // s, -(-96 // s)) for s in (4, 8, 16, 32, 64)]),
    ],
    ids=['mmpretrain', 'mmseg', 'mmdet'],
)
def test_whole_models(
    tool: ModuleType,
    config: Callable[[str], str],
    tmp_path: Path,
    text: str,
    shapes: list[tuple[int, ...]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As traces, the quickest to write."""
    out = tmp_path / 'model.pt'
    argv = [config(text), '--random-weights', '--format', 'torchscript', '--size', '64x96']
    tool.main([*argv, '--out', str(out)])
    assert '64 x 96: differs by' in capsys.readouterr().out
    outputs = torch.jit.load(out)(torch.randn(2, 3, 64, 96))
    assert [output.shape for output in outputs] == shapes


def test_a_file_that_differs_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('mmlocalattn.export.files.TOLERANCE', -1.0)
    path = tmp_path / 'nat.pt'
    with pytest.raises(ValueError, match=r'on 1 image\(s\) of 64 x 96 the exported file differs'):
        export(nat(), path, 'torchscript', SIZES[:1], {})
    assert not any(tmp_path.iterdir())


def test_checkpoint_must_hold_the_exported_weights(
    tool: ModuleType, config: Callable[[str], str], tmp_path: Path
) -> None:
    path, checkpoint = config(DETECTION), tmp_path / 'weights.pth'
    with pytest.raises(SystemExit):
        tool.main([path, '--format', 'onnx'])
    cfg = tool.config_of(tool.parse_args([path, '--random-weights', '--format', 'onnx']))
    module = tool.build(cfg, None, 'backbone')
    weights = {f'backbone.{name}': v + 1 for name, v in module.extract.state_dict().items()}
    torch.save({'state_dict': weights}, checkpoint)
    loaded = tool.build(cfg, str(checkpoint), 'backbone').extract.state_dict()
    torch.testing.assert_close(loaded, {name[9:]: value for name, value in weights.items()})
    with pytest.raises(ValueError, match=r"lacks 16 weights, the first: \['neck\."):
        tool.build(cfg, str(checkpoint), 'model')


def test_one_window_or_several(tmp_path: Path) -> None:
    class Swin(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = WindowAttention(3, 1, 7, 3)

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.attend(image.permute(0, 2, 3, 1)),)

    sizes = [(16, 20), (7, 50), (15, 5)]
    assert max(export(Swin().eval(), tmp_path / 'swin.pt2', 'pt2', sizes, {})) < 1e-5


def test_maps_of_odd_and_even_sides_in_a_neck(tmp_path: Path) -> None:
    """The last map, which FPN pools, has 16, 15 and 17 rows."""
    model = FeatureMaps(nat().extract, FPN([8], 4, num_outs=2)).eval()
    sizes = [(64, 96), (60, 64), (68, 52)]
    assert max(export(model, tmp_path / 'fpn.pt2', 'pt2', sizes, {})) < 1e-5


def test_a_course_that_depends_on_the_size_is_refused(tmp_path: Path) -> None:
    class Branch(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
            return (image + 1 if image.shape[2] > 70 else image - 1,)

    with pytest.raises(ValueError, match='export one file per size'):
        export(Branch(), tmp_path / 'branch.pt2', 'pt2', SIZES, {})
    assert not any(tmp_path.iterdir())


def test_what_is_missing(
    tool: ModuleType,
    config: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = [config(DETECTION), '--format', 'onnx', '--out', str(tmp_path / 'model.onnx')]
    with pytest.raises(SystemExit, match=r'error: no_such\.pth can not be found'):
        tool.main([argv[0], 'no_such.pth', *argv[1:]])
    with pytest.raises(SystemExit):
        tool.main([*argv, '--random-weights', '--size', '64x0'])
    assert "height and width must be at least 1, got '64x0'" in capsys.readouterr().err
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None if name == 'onnx' else find_spec(name)
    )
    with pytest.raises(SystemExit, match='error: ONNX files need onnx: pip install onnx'):
        tool.main([*argv, '--random-weights'])
