"""The ONNX forms of the operators, run one ONNX operator at a time."""

import numpy as np
import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn

if Version(torch.__version__) < Version('2.8'):
    pytest.skip('ONNX files need torch 2.8', allow_module_level=True)

from mmlocalattn.export.onnx_operators import (
    DECOMPOSITIONS,
    adaptive_average,
    convert,
    onnx_neighborhood_attention,
)
from mmlocalattn.ops import OPS, neighborhood_attention
from mmlocalattn.ops.neighborhood import neighborhood_attention_reference


def test_every_operator_has_a_form() -> None:
    assert {*DECOMPOSITIONS} == {*OPS}


def test_unknown_operator_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Attend(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return neighborhood_attention(x, x, x, 3)

    program = torch.export.export(Attend(), (torch.randn(1, 4, 5, 1, 2),))
    monkeypatch.delitem(DECOMPOSITIONS, 'neighborhood_attention')
    with pytest.raises(ValueError, match=r'neighborhood_attention\.default has no ONNX form'):
        convert(program)


@pytest.mark.parametrize(
    ('kernel_size', 'dilation'), [((3, 5), (2, 1)), ((1, 1), (1, 1)), ((1, 7), (5, 2))]
)
def test_loop_equals_the_reference(kernel_size: tuple[int, int], dilation: tuple[int, int]) -> None:
    query, key, value = 3 * torch.randn(3, 2, 9, 14, 2, 4)
    expected = neighborhood_attention_reference(query, key, value, None, kernel_size, dilation, 0.5)
    arrays = (tensor.numpy() for tensor in (query, key, value))
    actual = onnx_neighborhood_attention(
        *arrays, None, np.array(kernel_size), np.array(dilation), scale=0.5
    )
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('output_size', [(1, 1), (2, 3), (6, 6), (7, 11), (9, 13)])
def test_adaptive_average(output_size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 7, 11)
    expected = torch.nn.functional.adaptive_avg_pool2d(x, output_size)
    torch.testing.assert_close(adaptive_average(x, output_size), expected)
