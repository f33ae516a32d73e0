"""tools/export.py: whole models of the three toolboxes, and errors."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_data
import torch
from tiny_data import CLASSIFICATION, DETECTION, SEGMENTATION, quick  # noqa: F401

TOOL = tiny_data.load_tool('export')
pytestmark = pytest.mark.usefixtures('quick')


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    """Write a config with small windows and few blocks, so that it is converted in seconds."""
    small = """
model['backbone']['arch'].update(depths=[1, 1, 1, 1])
model['backbone'].update(scan=[dict(local_kernel=3, anchor_kernel=1)] * 4)
"""
    return lambda text: tiny_data.write_config(tmp_path / 'config.py', text, tmp_path, small)


@pytest.mark.needs_torch('2.8', 'a graph for a range of sizes')
def test_onnx_of_windows_that_grow_with_the_map(
    config: Callable[[str], str], tmp_path: Path
) -> None:
    """Maps of 16 and 45 rows at least: 3 and 7 anchors."""
    import onnx

    out = tmp_path / 'ssvit.onnx'
    narrow = dict(embed_dims=8, depths=1, num_heads=2, mlp_ratios=2)
    options = [f'model.backbone.arch.{key}=[{value}]' for key, value in narrow.items()]
    options += ['model.backbone.out_indices=[0]', 'model.backbone.scan=adaptive']
    argv = [config(DETECTION), '--random-weights', '--format', 'onnx', '--part', 'backbone']
    argv += ['--out', str(out), '--size', '64x96', '180x200', '75x130']
    TOOL.main([*argv, '--cfg-options', *options])
    model = onnx.load(out)
    assert {node.domain for node in model.graph.node} == {''}
    assert 'Loop' in {node.op_type for node in model.graph.node}
    (meta,) = (json.loads(p.value) for p in model.metadata_props if p.key == 'mmlocalattn')
    assert meta['part'] == 'backbone'


@pytest.mark.parametrize(
    ('text', 'options', 'shapes'),
    [
        (CLASSIFICATION, [], [(2, 2)]),
        (SEGMENTATION, [], [(2, 3, 64, 96)]),
        (SEGMENTATION, ['--labels'], [(2, 64, 96)]),
        (DETECTION, [], [(2, 5, 4), (2, 5), (2, 5), (2, 5, 28, 28)]),
        (
            DETECTION,
            ['--part', 'neck'],
            [(2, 16, 64 // s, -(-96 // s)) for s in (4, 8, 16, 32, 64)],
        ),
    ],
    ids=['mmpretrain', 'mmseg', 'labels', 'mmdet', 'neck'],
)
def test_whole_models(
    config: Callable[[str], str],
    tmp_path: Path,
    text: str,
    options: list[str],
    shapes: list[tuple[int, ...]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As traces, the quickest to write."""
    out = tmp_path / 'model.pt'
    argv = [config(text), '--random-weights', '--format', 'torchscript', '--size', '64x96']
    TOOL.main([*argv, '--out', str(out), *options])
    assert '64 x 96: differs by' in capsys.readouterr().out
    outputs = torch.jit.load(out)(torch.randn(2, 3, 64, 96))
    assert [output.shape for output in outputs] == shapes


@pytest.mark.needs_torch('2.8', 'a graph for a range of sizes')
def test_what_is_missing(
    config: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = [config(DETECTION), '--format', 'onnx', '--out', str(tmp_path / 'model.onnx')]
    with pytest.raises(SystemExit, match=r"error: checkpoint 'no_such\.pth' does not exist"):
        TOOL.main([argv[0], 'no_such.pth', *argv[1:]])
    with pytest.raises(SystemExit):
        TOOL.main(argv)
    assert 'give either a checkpoint or --random-weights' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        TOOL.main([*argv, '--random-weights', '--size', '64x0'])
    assert "'64x0' is not HEIGHTxWIDTH" in capsys.readouterr().err
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None if name == 'onnx' else find_spec(name)
    )
    with pytest.raises(SystemExit, match='error: ONNX files need onnx: pip install onnx'):
        TOOL.main([*argv, '--random-weights'])


def test_a_checkpoint_with_another_head(tmp_path: Path) -> None:
    config, checkpoint = tiny_data.write_model(tmp_path, tmp_path, 'SEGMENTATION')
    argv = [config, str(checkpoint), '--format', 'torchscript', '--size', '64x64']
    message = r'^error: .* decode_head\.conv_seg\.weight has shape \[3, 16, 1, 1\] in the check'
    with pytest.raises(SystemExit, match=message):
        TOOL.main([*argv, '--cfg-options', 'model.decode_head.num_classes=4'])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--out', 'a.onnx'], "argument --out: 'a.onnx' must end with .pt, as files of --format t"),
        (['--verify-images', '-1'], "argument --verify-images: '-1' is no whole number from 0"),
        (['--show', 'a.pt'], 'error: --show FILE stands alone, got '),
        (['--size', '64x64', '64x96'], 'error: --size 64x64 64x96: a TorchScript file takes imag'),
        (['--size', '64x90'], 'pads the sides of images to multiples of 32 (pad_size_divisor); '),
    ],
)
def test_what_is_refused_at_once(
    config: Callable[[str], str],
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = [config(DETECTION), '--random-weights', '--format', 'torchscript']
    with pytest.raises(SystemExit) as raised:
        TOOL.main([*argv, *options])
    assert message in f'{raised.value.code}{capsys.readouterr().err}'
