"""The ONNX forms of the operators in onnxruntime, beside the references."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn

if Version(torch.__version__) < Version('2.8'):
    pytest.skip('ONNX files need torch 2.8', allow_module_level=True)

import onnxruntime
from torch.export import Dim

from mmlocalattn.export.files import _trace
from mmlocalattn.export.onnx_operators import OPERATORS, convert
from mmlocalattn.layers.scan_geometry import adaptive_scan
from mmlocalattn.ops import (
    OPS,
    neighborhood_attention,
    query_and_attend,
    slide_attention,
    sparse_scan_attention,
    stand_alone_attention,
)

HEADS, CHANNELS = 2, 4


class Operators(nn.Module):
    """Many calls on one map (B, num_heads * head_dim, H, W)."""

    in_channels = HEADS * CHANNELS

    def __init__(self, *calls: Any) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = image.permute(0, 2, 3, 1).unflatten(-1, (HEADS, -1))
        return tuple(call(x, x.flip(-1), x.sin()) for call in self.calls)


def differences(calls: Sequence[Any], sizes: Sequence[tuple[int, int]], path: Path) -> list[float]:
    """Write the calls to one file for the sizes, and return its errors in all of them."""
    model = Operators(*calls).eval()
    with torch.no_grad():
        convert(_trace(model, sizes)).save(path)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    errors = []
    for batch, size in zip([2, 1, 3], sizes):
        image = 2 * torch.randn(batch, model.in_channels, *size)
        for actual, expected in zip(session.run(None, {'image': image.numpy()}), model(image)):
            assert actual.shape == expected.shape
            errors.append((torch.from_numpy(actual) - expected).abs().max().item())
    return errors


def neighborhood(kernel: Any, dilation: Any = 1, bias: bool = False, scale: Any = None) -> Any:
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    table = torch.randn(HEADS, 2 * rows - 1, 2 * columns - 1) if bias else None
    return lambda q, k, v: neighborhood_attention(q, k, v, kernel, dilation, table, scale)


def sparse_scan(local: Any, anchor: Any, dilation: Any, rotates: bool = False) -> Any:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        angle = torch.arange(q.shape[1])[:, None] + 0.3 * torch.arange(q.shape[2])
        angle = angle[..., None].expand(-1, -1, CHANNELS)
        rotary = (angle.sin(), angle.cos()) if rotates else None
        return sparse_scan_attention(q, k, v, local, anchor, dilation, rotary=rotary)

    return call


def slide(kernel: int, biases: bool) -> Any:
    weight = torch.randn(CHANNELS, kernel**2, kernel, kernel) / kernel
    bias = torch.randn(CHANNELS, kernel**2) if biases else None
    position_bias = torch.randn(HEADS, kernel, kernel) if biases else None
    return lambda q, k, v: slide_attention(q, k, v, weight, bias, position_bias)


def learned_queries(kernel: Any, stride: int = 1, tables: bool = False) -> Any:
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    bias, factors = torch.randn(2, 3, HEADS, *sides) if tables else (None, None)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.stack([q.sum(-1), k.sum(-1), k.amax(-1)], dim=3)
        return query_and_attend(scores, v, bias, factors, kernel, stride)

    return call


def stand_alone(kernel: Any, padding: Any = 'mask', scale: float = 0.7) -> Any:
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    half = CHANNELS // 2
    embeddings = torch.randn(HEADS, rows, half), torch.randn(HEADS, columns, half)
    return lambda q, k, v: stand_alone_attention(q, k, v, *embeddings, kernel, padding, scale)


def stand_alone_of_one_channel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No channel is left for the embedding of rows."""
    rows, columns = torch.ones(HEADS, 3, 0), torch.linspace(-1, 1, 5).expand(HEADS, 5).unsqueeze(2)
    maps = (tensor[..., :1] for tensor in (q, k, v))
    return stand_alone_attention(*maps, rows, columns, (3, 5), 'mask', 0.7)


def small() -> list[Any]:
    """What fits a map of 7 x 9."""
    return [
        neighborhood(7, bias=True),
        neighborhood((1, 3), (5, 2), scale=-0.5),
        sparse_scan((5, 3), 3, (2, 3), rotates=True),
        sparse_scan(1, (7, 9), 1),
        slide(3, biases=True),
        learned_queries((1, 5), tables=True),
        learned_queries(3, 2),
        stand_alone((3, 5)),
        stand_alone(11, 'zero'),
        stand_alone_of_one_channel,
    ]


def large() -> list[Any]:
    """What needs several tiles along an axis."""
    return [
        neighborhood((3, 7), (2, 1), bias=True),
        neighborhood((9, 5), bias=True),
        neighborhood(11),
        neighborhood(1),
        sparse_scan(7, 3, (3, 5), rotates=True),
        sparse_scan(3, 1, 1),
        learned_queries((7, 3), 2, tables=True),
        stand_alone(7),
        stand_alone((5, 3), 'zero', -0.3),
    ]


def test_every_operator_has_a_form() -> None:
    assert {*OPERATORS} == {*OPS}


@pytest.mark.parametrize(
    ('calls', 'sizes'),
    [
        (small, [(7, 9)]),
        (small, [(7, 9), (14, 9), (8, 23)]),
        (large, [(23, 34), (29, 20), (18, 41)]),
    ],
)
def test_equals_the_operators(calls: Any, sizes: list[tuple[int, int]], tmp_path: Path) -> None:
    torch.manual_seed(1)
    assert max(differences(calls(), sizes, tmp_path / 'x.onnx')) < 1e-5


def test_windows_that_follow_the_map(tmp_path: Path) -> None:
    def follow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scan = adaptive_scan(*q.shape[1:3], grid_first=True)
        return sparse_scan_attention(q, k, v, *scan)

    sizes = [(27, 36), (20, 41), (44, 21)]
    assert max(differences([follow], sizes, tmp_path / 'x.onnx')) < 1e-5


def test_large_logits(tmp_path: Path) -> None:
    """Masked keys have far larger logits than those in the window."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        position = torch.arange(20.0)[:, None, None, None]
        return neighborhood_attention(q * 0 + 1, k * 0 + 50 * position, v, 3)

    assert max(differences([call], [(20, 9)], tmp_path / 'x.onnx')) < 1e-5


def test_unknown_operator_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    program = torch.export.export(Operators(neighborhood(3)), (torch.randn(1, 8, 4, 5),))
    monkeypatch.delitem(OPERATORS, 'neighborhood_attention')
    with pytest.raises(ValueError, match=r'neighborhood_attention\.default has no ONNX form'):
        convert(program)


class Average(nn.Module):
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        sides = [(1, 1), (2, 3), (6, 6), (7, 11), (9, 13)]
        return tuple(nn.functional.adaptive_avg_pool2d(image, side) for side in sides)


def test_adaptive_average(tmp_path: Path) -> None:
    dims = {2: Dim('height', min=4, max=9), 3: Dim('width', min=7, max=20)}
    x = torch.randn(2, 3, 7, 11)
    program = torch.export.export(Average(), (x,), dynamic_shapes={'image': dims}, strict=True)
    convert(program).save(tmp_path / 'x.onnx')
    session = onnxruntime.InferenceSession(tmp_path / 'x.onnx', providers=['CPUExecutionProvider'])
    for image in (x, torch.randn(2, 3, 9, 20), torch.randn(2, 3, 4, 7)):
        actual = [torch.from_numpy(a) for a in session.run(None, {'image': image.numpy()})]
        torch.testing.assert_close(actual, list(Average()(image)))
