"""What exported files give, and that none is left that disagrees."""

import operator
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmdet.models.necks import FPN

from mmlocalattn.backbones.nat import NAT
from mmlocalattn.export.files import FeatureMaps, export, verify
from mmlocalattn.layers.window_attention import WindowAttention

ROOT = Path(__file__).parents[2]
NARROW = {'embed_dims': (8,), 'depths': (1,), 'num_heads': (2,), 'mlp_ratios': (2,)}
SIZES = [(64, 96), (80, 64), (71, 50)]


def nat() -> FeatureMaps:
    torch.manual_seed(1)
    return FeatureMaps(NAT(NARROW, out_indices=(0,), kernel_size=3)).eval()


@pytest.mark.needs_torch('2.8', 'a graph for a range of sizes')
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
    subprocess.run([sys.executable, '-c', script, tmp_path], cwd=ROOT, check=True)
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


@pytest.mark.needs_torch('2.8', 'a graph for a range of sizes')
def test_onnx_of_position_biases(tmp_path: Path) -> None:
    import onnxruntime

    path, image = tmp_path / 'nat.onnx', torch.randn(3, 3, 79, 66)
    assert max(export(nat(), path, 'onnx', SIZES, {})) < 1e-5
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    with torch.no_grad():
        expected = nat()(image)
    actual = [torch.from_numpy(a) for a in session.run(None, {'image': image.numpy()})]
    torch.testing.assert_close(actual, list(expected), rtol=1e-5, atol=1e-5)


def test_progress_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
            time.sleep(0.05)
            return (image + 1,)

    lines: list[str] = []
    monkeypatch.setattr('mmlocalattn.export.files.PATIENCE', 0.02)
    export(Slow(), tmp_path / 'slow.pt', 'torchscript', [(8, 8)], {}, lines.append)
    assert lines[:2] == ['writing torchscript', 'writing torchscript: 0 s']
    assert '8 x 8: comparing with the model: 0 s' in lines
    assert lines[-1].startswith('8 x 8: differs by')


def test_a_file_that_differs_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('mmlocalattn.export.files.TOLERANCE', -1.0)
    path = tmp_path / 'nat.pt'
    with pytest.raises(ValueError, match=r'on 1 image\(s\) of 64 x 96 the exported file differs'):
        export(nat(), path, 'torchscript', SIZES[:1], {})
    assert not any(tmp_path.iterdir())


@pytest.mark.needs_torch('2.8', 'a graph for a range of sizes')
def test_one_window_or_several(tmp_path: Path) -> None:
    class Swin(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = WindowAttention(3, 1, 7, 3)

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.attend(image.permute(0, 2, 3, 1)),)

    sizes = [(16, 20), (7, 50), (15, 5)]
    assert max(export(Swin().eval(), tmp_path / 'swin.pt2', 'pt2', sizes, {})) < 1e-5


@pytest.mark.needs_torch('2.8', 'a graph for a range of sizes')
def test_maps_of_odd_and_even_sides_in_a_neck(tmp_path: Path) -> None:
    """The last map, which FPN pools, has 16, 15 and 17 rows."""
    model = FeatureMaps(nat().extract, FPN([8], 4, num_outs=2)).eval()
    sizes = [(64, 96), (60, 64), (68, 52)]
    assert max(export(model, tmp_path / 'fpn.pt2', 'pt2', sizes, {})) < 1e-5


@pytest.mark.needs_torch('2.8', 'a graph for a range of sizes')
def test_a_course_that_depends_on_the_size_is_refused(tmp_path: Path) -> None:
    class Branch(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
            return (image + 1 if image.shape[2] > 70 else image - 1,)

    with pytest.raises(ValueError, match='export one file per size'):
        export(Branch(), tmp_path / 'branch.pt2', 'pt2', SIZES, {})
    assert not any(tmp_path.iterdir())


def test_an_older_torch_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('mmlocalattn.export.files._symbolic_config', lambda: None)
    with pytest.raises(ValueError, match=r'^pt2 files need torch 2\.8 or newer, this is torch \d'):
        export(nat(), tmp_path / 'nat.pt2', 'pt2', SIZES, {})
    assert not any(tmp_path.iterdir())


def test_nothing_of_torch_stays_replaced(tmp_path: Path) -> None:
    original = torch._meta_registrations.div_rtn
    seen = []

    class Fails(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
            seen.append(torch._meta_registrations.div_rtn)
            raise KeyError

    with pytest.raises(KeyError):
        export(Fails(), tmp_path / 'fails.pt', 'torchscript', SIZES[:1], {})
    assert seen == [operator.floordiv]
    assert torch._meta_registrations.div_rtn is original
