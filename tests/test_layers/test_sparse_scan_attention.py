from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from mmlocalattn.layers.rotary import rotary_table
from mmlocalattn.layers.scan_geometry import adaptive_scan, spread_scan
from mmlocalattn.layers.sparse_scan_attention import SparseScanAttention

RENAMES = {'out_proj': 'proj'}


def relative_error(actual: Tensor, expected: np.ndarray) -> float:
    expected = torch.from_numpy(expected)
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def our_name(name: str) -> str:
    module, kind = name.split('.')
    return f'{RENAMES.get(module, module)}.{kind}'


@pytest.mark.golden('s3a_*.npz')
def test_equals_the_released_module(golden_file):
    with np.load(golden_file) as arrays:
        grid_first = golden_file.stem.startswith('s3a_grid_first')
        layer = SparseScanAttention(32, 2, partial(adaptive_scan, grid_first=grid_first))
        for name, parameter in layer.named_parameters():
            (array,) = (
                arrays[key]
                for key in arrays.files
                if key.startswith('param/') and our_name(key[6:]) == name
            )
            parameter.data = torch.from_numpy(array).reshape(parameter.shape)

        x = torch.from_numpy(arrays['input']).permute(0, 2, 3, 1).contiguous().requires_grad_()
        y = layer(x, rotary_table(*x.shape[1:3], head_dim=16))
        y.backward(torch.from_numpy(arrays['grad_output']).permute(0, 2, 3, 1))

        assert relative_error(y.permute(0, 3, 1, 2), arrays['output']) < 1e-4
        assert relative_error(x.grad.permute(0, 3, 1, 2), arrays['grad_input']) < 1e-3
        grads = {key[11:]: arrays[key] for key in arrays.files if key.startswith('grad_param/')}
        assert {our_name(name) for name in grads} == {name for name, _ in layer.named_parameters()}
        for name, expected in grads.items():
            grad = layer.get_parameter(our_name(name)).grad.reshape(expected.shape)
            assert relative_error(grad, expected) < 1e-3, name


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (6, 3), (8, 20)])
@pytest.mark.parametrize('grid_first', [False, True])
def test_any_map(size, grid_first):
    layer = SparseScanAttention(16, 2, partial(adaptive_scan, grid_first=grid_first))
    x = torch.randn(2, *size, 16, requires_grad=True)
    y = layer(x, rotary_table(*size, head_dim=8))
    y.sum().backward()
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


def test_the_scan_decides_what_is_seen():
    layer = SparseScanAttention(
        8, 1, partial(spread_scan, local_kernel=1, anchor_kernel=3, anchor_dilation=4)
    )
    x = torch.randn(1, 12, 12, 8, requires_grad=True)
    layer(x, rotary_table(12, 12, head_dim=8))[0, 5, 6].sum().backward()
    seen = x.grad[0].abs().sum(-1) > 0
    anchors = torch.zeros(12, 12, dtype=torch.bool)
    anchors[1::4, 2::4] = True  # the anchor grid of position (5, 6)
    anchors[3:8, 4:9] = True  # and the 5x5 LePE around it
    assert torch.equal(seen, anchors)


def test_rejects_heads_that_do_not_divide():
    with pytest.raises(ValueError, match='got dim=24, num_heads=4'):
        SparseScanAttention(24, 4)
