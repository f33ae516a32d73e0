"""The operators in the FLOP counters of PyTorch and MMEngine."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmlocalattn.layers.neighborhood_attention import NeighborhoodAttention
from mmlocalattn.layers.rotary import rotary_table
from mmlocalattn.layers.sparse_scan_attention import SparseScanAttention
from mmlocalattn.layers.window_attention import WindowAttention
from mmlocalattn.ops.neighborhood import neighborhood_attention
from mmlocalattn.ops.query_and_attend import query_and_attend
from mmlocalattn.ops.slide import shift_kernel, slide_attention
from mmlocalattn.ops.sparse_scan import sparse_scan_attention
from mmlocalattn.ops.stand_alone import stand_alone_attention

BATCH, HEIGHT, WIDTH, HEADS, HEAD_DIM = SHAPE = (2, 9, 12, 3, 8)
QUERIES = BATCH * HEIGHT * WIDTH * HEADS


def stand_alone(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    rows, columns = torch.zeros(HEADS, 3, HEAD_DIM // 2), torch.zeros(HEADS, 5, HEAD_DIM // 2)
    return stand_alone_attention(query, key, value, rows, columns, (3, 5))


# name: the call, positions of all windows that a query sees
CALLS: dict[str, tuple[Callable[..., Tensor], int]] = {
    'neighborhood': (lambda q, k, v: neighborhood_attention(q, k, v, (5, 3), (1, 2)), 5 * 3),
    'both_steps': (lambda q, k, v: sparse_scan_attention(q, k, v, (3, 5), 3, 2), 3 * 5 + 3 * 3),
    'no_local': (lambda q, k, v: sparse_scan_attention(q, k, v, 1, 3, 2), 3 * 3),
    'stand_alone': (stand_alone, 3 * 5),
    'no_anchors': (lambda q, k, v: sparse_scan_attention(q, k, v, 5, 1, 1), 5 * 5),
}


def mmengine_counter(model: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Any:
    """MMEngine's, imported here: the other tests of this folder run where it is not installed."""
    from mmengine.analysis import FlopAnalyzer

    from mmlocalattn import backbones  # noqa: F401  (tells MMEngine)

    return FlopAnalyzer(model, inputs)


def dense_flops(products: int, keys: int) -> int:
    """What PyTorch counts for matrix products of this size."""
    left, right = torch.empty(QUERIES, HEAD_DIM, device='meta'), torch.empty(HEAD_DIM, keys)
    with FlopCounterMode(display=False) as counter:
        torch.mm(left, right.to('meta'))
    return products * counter.get_total_flops()


@pytest.mark.parametrize('name', list(CALLS))
def test_torch_counts_as_matrix_products(name: str) -> None:
    call, keys = CALLS[name]
    tensors = [torch.randn(SHAPE, requires_grad=True) for _ in range(3)]
    with FlopCounterMode(display=False) as counter:
        output = call(*tensors)
    assert counter.get_total_flops() == dense_flops(2, keys)
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == dense_flops(5, keys)


@pytest.mark.parametrize(('stride', 'windows'), [(1, 9 * 13), (2, 5 * 7)])
def test_query_and_attend(stride: int, windows: int) -> None:
    """One product of every window with its values forward, two backward."""
    scores, values = torch.randn(2, 9, 13, 4, 3), torch.randn(2, 9, 13, 3, 8, requires_grad=True)
    expected = 2 * windows * 3 * 8 * 5 * 3
    with FlopCounterMode(display=False) as counter:
        output = query_and_attend(scores, values, kernel_size=(5, 3), stride=stride)
    assert counter.get_total_flops() == 2 * expected
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * expected
    call = Call(lambda *maps: query_and_attend(*maps, kernel_size=(5, 3), stride=stride))
    assert mmengine_counter(call, (scores, values.detach())).total() == expected


class Call(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


@pytest.mark.parametrize('name', list(CALLS))
def test_mmengine_counts_multiply_adds(name: str) -> None:
    call, keys = CALLS[name]
    analyzer = mmengine_counter(Call(call), tuple(torch.randn(3, *SHAPE)))
    assert analyzer.total() == dense_flops(2, keys) // 2


def slide(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    kernel = shift_kernel(HEAD_DIM, 3).to(query)
    return slide_attention(query, key, value, kernel.requires_grad_())


def convolution_flops(convolutions: int, taps: int) -> int:
    """What PyTorch counts for the depthwise convolutions of a map to ``taps`` copies."""
    image = torch.empty(BATCH, HEADS * HEAD_DIM, HEIGHT, WIDTH, device='meta')
    copies = taps * image.shape[1]
    conv = nn.Conv2d(image.shape[1], copies, 3, 1, 1, groups=image.shape[1], device='meta')
    with FlopCounterMode(display=False) as counter:
        conv(image)
    return convolutions * counter.get_total_flops()


def test_slide_attention_counts_its_convolutions() -> None:
    tensors = [torch.randn(SHAPE, requires_grad=True) for _ in range(3)]
    with FlopCounterMode(display=False) as counter:
        output = slide(*tensors)
    forward = dense_flops(2, 9) + convolution_flops(2, 9)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == dense_flops(5, 9) + convolution_flops(6, 9)
    analyzer = mmengine_counter(Call(slide), tuple(torch.randn(3, *SHAPE)))
    assert analyzer.by_operator()['slide_attention'] == forward // 2


class Scan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = SparseScanAttention(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, rotary_table(x.shape[1], x.shape[2], 8))


@pytest.mark.parametrize(
    ('layer', 'op', 'keys'),
    [
        (NeighborhoodAttention(24, 3, 7), 'neighborhood_attention', 7 * 7),
        (NeighborhoodAttention(24, 3, 13), 'neighborhood_attention', 9 * 11),  # shrinks to the map
        (Scan(), 'sparse_scan_attention', 7 * 7),
    ],
)
def test_layers_can_be_traced(layer: nn.Module, op: str, keys: int) -> None:
    """Sizes are tensors while torch.jit traces, and windows are computed from them."""
    analyzer = mmengine_counter(layer, (torch.randn(BATCH, HEIGHT, WIDTH, HEADS * HEAD_DIM),))
    assert analyzer.by_operator()[op] == dense_flops(2, keys) // 2


def test_window_attention_can_be_traced() -> None:
    """MMEngine does not know PyTorch's own attention."""
    layer = WindowAttention(HEADS * HEAD_DIM, HEADS, (3, 4))
    analyzer = mmengine_counter(layer, (torch.randn(BATCH, HEIGHT, WIDTH, HEADS * HEAD_DIM),))
    counted = analyzer.by_operator()['scaled_dot_product_attention']
    assert counted == dense_flops(2, 3 * 4) // 2
