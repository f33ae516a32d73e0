"""Sparse scan attention against its definition and the operator contract."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from contract import Case, SoftmaxContract, with_large_products
from test_neighborhood import neighborhood_oracle
from torch import Tensor

from mmlocalattn.ops.neighborhood import neighborhood_attention
from mmlocalattn.ops.sparse_scan import (
    rotate_pairs,
    sparse_scan_attention,
    sparse_scan_attention_backward_reference,
    sparse_scan_attention_reference,
)


def rotary_oracle(tensor: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Each adjacent pair of channels turned by hand."""
    output = torch.empty_like(tensor)
    for b, y, x, n, even in np.ndindex(tensor.shape):
        if even % 2 == 0:
            odd, vector = even + 1, tensor[b, y, x, n]
            output[b, y, x, n, even] = (
                vector[even] * cos[y, x, even] - vector[odd] * sin[y, x, even]
            )
            output[b, y, x, n, odd] = vector[odd] * cos[y, x, odd] + vector[even] * sin[y, x, odd]
    return output


def case(
    shape: tuple,
    local: tuple,
    anchor: tuple,
    dilation: tuple,
    rotary: bool = False,
    scale: float | None = None,
) -> Case:
    return dict(
        shape=shape, local=local, anchor=anchor, dilation=dilation, rotary=rotary, scale=scale
    )


class TestSparseScanAttention(SoftmaxContract):
    op_name = 'sparse_scan_attention'
    reference = staticmethod(sparse_scan_attention_reference)
    cases: ClassVar[dict[str, Case]] = {
        'local_first_rotary': case((1, 7, 8, 2, 4), (3, 3), (3, 3), (2, 2), rotary=True),
        'grid_first': case((2, 6, 9, 1, 6), (5, 3), (3, 3), (1, 3)),
        'rectangular_rotary': case(
            (1, 5, 6, 3, 20), (3, 5), (1, 3), (1, 2), rotary=True, scale=0.3
        ),
        'no_anchors': case((1, 5, 7, 2, 8), (5, 5), (1, 1), (1, 1), rotary=True),
        'no_local': case((1, 7, 6, 1, 4), (1, 1), (3, 3), (2, 2), rotary=True),
        'map_1x1': case((2, 1, 1, 2, 2), (1, 1), (1, 1), (1, 1), rotary=True),
    }
    cuda_cases: ClassVar[dict[str, Case]] = {
        'dim16_rotary': case((2, 9, 8, 2, 16), (5, 3), (3, 3), (2, 2), rotary=True),
        'dim32_rotary': case((1, 10, 13, 2, 32), (3, 3), (3, 5), (3, 2), rotary=True),
        'dim6_rotary': case((2, 5, 6, 3, 6), (3, 3), (3, 3), (1, 2), rotary=True),
        'dim64': case((1, 7, 9, 1, 64), (3, 3), (3, 3), (2, 3)),
        'dim32': case((1, 6, 7, 2, 32), (3, 3), (3, 3), (2, 2)),
        'dim128_rotary': case((1, 6, 7, 1, 128), (3, 5), (3, 3), (2, 2), rotary=True),
        'dim32_no_local': case((1, 7, 9, 2, 32), (1, 1), (3, 3), (2, 3), rotary=True),
        'dim32_no_anchors': case((1, 7, 5, 2, 32), (5, 3), (1, 1), (1, 1), rotary=True),
    }
    large_case: ClassVar[Case] = case((1, 100, 167, 2, 32), (7, 7), (15, 15), (6, 6), rotary=True)
    steep_cases: ClassVar[dict[str, Case]] = {
        'both': case((1, 14, 19, 2, 32), (3, 5), (5, 3), (2, 4), scale=4.0),
    }
    errors: ClassVar[dict[str, tuple[Case, str]]] = {
        'even_local_kernel': (dict(local=(2, 3)), 'must be odd and positive'),
        'even_anchor_kernel': (dict(anchor=(3, 2)), 'must be odd and positive'),
        'anchors_too_far': (
            dict(dilation=(3, 2)),
            r'must not exceed the map, .* for a map of \(7, 8\)',
        ),
        'shape': ({2: lambda value: value[..., :1, :]}, 'must have one shape'),
        'dtype': ({0: Tensor.half}, 'must have one dtype'),
        'device': ({0: lambda query: query.to('meta')}, 'must be on one device'),
        'rotary_shape': (
            dict(rotary=(torch.zeros(7, 8, 2),) * 2),
            r'sin must have shape .* = \(7, 8, 4\), got \(7, 8, 2\)',
        ),
        'rotary_device': (
            dict(rotary=(torch.zeros(7, 8, 4, device='meta'),) * 2),
            'got torch.float32 on meta',
        ),
        'rotary_integer': (
            dict(rotary=(torch.zeros(7, 8, 4).int(),) * 2),
            'must be floating point',
        ),
        'rotary_grad': (
            dict(rotary=(torch.zeros(7, 8, 4, requires_grad=True),) * 2),
            'gets no gradient',
        ),
    }

    def tensors(
        self, case: Case, dtype: torch.dtype = torch.float64, device: str = 'cpu'
    ) -> tuple[Tensor, ...]:
        return tuple(torch.randn(case['shape'], dtype=dtype, device=device) for _ in range(3))

    def steep_tensors(self, case: Case) -> tuple[Tensor, ...]:
        query, key, value = self.tensors(case, torch.float32)
        return *with_large_products(query, key), value

    def rotary(self, case: Case, device: torch.device) -> tuple[Tensor, Tensor] | tuple[None, None]:
        if not isinstance(case['rotary'], bool):
            return case['rotary']
        if not case['rotary']:
            return None, None
        _, height, width, _, head_dim = case['shape']
        size = height * width * head_dim
        angles = torch.linspace(0, 7, size, dtype=torch.float64, device=device)
        angles = angles.view(height, width, head_dim)  # the two of a pair differ, the hardest case
        return angles.sin(), angles.cos()

    def call(self, tensors: tuple[Tensor, ...], case: Case) -> Tensor:
        rotary = self.rotary(case, tensors[0].device)
        return sparse_scan_attention(
            *tensors,
            case['local'],
            case['anchor'],
            case['dilation'],
            case['scale'],
            None if rotary[0] is None else rotary,
        )

    def op_args(self, tensors: tuple[Tensor, ...], case: Case) -> tuple:
        scale = tensors[0].shape[-1] ** -0.5 if case['scale'] is None else case['scale']
        rotary = self.rotary(case, tensors[0].device)
        return *tensors, *rotary, case['local'], case['anchor'], case['dilation'], scale

    def oracle(self, tensors: tuple[Tensor, ...], case: Case) -> Tensor:
        query, key, value, sin, cos, local, anchor, dilation, scale = self.op_args(tensors, case)
        if sin is not None:
            query, key = rotary_oracle(query, sin, cos), rotary_oracle(key, sin, cos)
        inner = neighborhood_oracle(query, key, value, None, local, (1, 1), scale)
        return neighborhood_oracle(query, key, inner, None, anchor, dilation, scale)

    def backward_reference(self, grad_output: Tensor, args: tuple, outputs: tuple) -> list[Tensor]:
        return list(
            sparse_scan_attention_backward_reference(grad_output, *args[:5], *outputs, *args[5:])
        )


def test_is_two_neighborhood_attentions() -> None:
    query, key, value = torch.randn(3, 1, 20, 25, 2, 16)
    sin, cos = torch.randn(2, 20, 25, 16)
    output = sparse_scan_attention(query, key, value, 7, 5, (3, 4), rotary=(sin, cos))
    query, key = rotate_pairs(query, sin, cos), rotate_pairs(key, sin, cos)
    inner = neighborhood_attention(query, key, value, 7)
    torch.testing.assert_close(output, neighborhood_attention(query, key, inner, 5, (3, 4)))


def test_odd_head_dim_with_rotary_is_an_error() -> None:
    with pytest.raises(ValueError, match='rotary needs an even head_dim, got 3'):
        sparse_scan_attention(
            *torch.zeros(3, 1, 2, 2, 1, 3), 1, 1, 1, rotary=tuple(torch.zeros(2, 2, 2, 3))
        )
