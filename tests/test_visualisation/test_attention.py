"""The recorded weights are those with which the operators made their outputs."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocalattn.backbones.nat import NAT
from mmlocalattn.backbones.qna_vit import QnAViT
from mmlocalattn.backbones.sasa_resnet import SASAResNet
from mmlocalattn.backbones.slide_transformer import SlideCSwin, SlideNAT, SlidePVT
from mmlocalattn.backbones.ssvit import SSViT
from mmlocalattn.layers.query_and_attend import QueryAndAttend
from mmlocalattn.ops import OPS
from mmlocalattn.visualisation.attention import FAMILIES, Attention, record_attention

WIDTHS = dict(embed_dims=(8, 16), num_heads=(1, 2), mlp_ratios=(2, 2))
SIZE = (92, 120)  # of the image: maps of 23 x 30 and 12 x 15, or 11 x 15


def ssvit(scan: Any = 'adaptive') -> nn.Module:
    return SSViT({**WIDTHS, 'depths': (2, 2)}, out_indices=(0, 1), scan=scan)


def nat(**options: Any) -> nn.Module:
    return NAT({**WIDTHS, 'depths': (2, 2)}, out_indices=(0, 1), **options)


def qna_vit(kernel: int = 3, **arch: Any) -> nn.Module:
    windows = dict(window_depths=(1, 0), window_heads=(2, 2), window_sizes=(7, 7))
    arch = {**WIDTHS, 'depths': (1, 1), 'kernel_sizes': (kernel, kernel), **windows, **arch}
    return QnAViT(arch, out_indices=(0, 1))


def sasa(**options: Any) -> nn.Module:
    arch = dict(embed_dims=(32, 64), depths=(1, 2), num_heads=(2, 4))
    return SASAResNet(arch, out_indices=(0, 1), **options)


def slide(backbone: type, **options: Any) -> nn.Module:
    keys = {'SlidePVT': 'sr_ratios', 'SlideCSwin': 'split_sizes'}
    arch = {**WIDTHS, 'depths': (2, 1)}
    if backbone.__name__ in keys:
        arch[keys[backbone.__name__]] = (1, 1)
    return backbone(arch, out_indices=(0, 1), **options)


CASES = {
    'ssvit': ssvit,
    'ssvit_fixed': lambda: ssvit('fixed'),
    'ssvit_windows_or_anchors': lambda: ssvit(
        [
            dict(local_kernel=1, anchor_kernel=3),
            [dict(local_kernel=5, anchor_kernel=1), dict(local_kernel=1, anchor_kernel=1)],
        ]
    ),
    'nat': nat,
    'dinat': lambda: nat(dilations=((1, 3), (1, 2))),
    'dinat_padded': lambda: nat(dilations=((1, 4), (1, 2)), pad_small_maps=True),
    'slide_pvt': lambda: slide(SlidePVT),
    'slide_cswin': lambda: slide(SlideCSwin, kernel_size=5),
    'slide_nat': lambda: slide(SlideNAT),
    'qna_vit': qna_vit,
    'qna_vit_k5': lambda: qna_vit(5),
    'sasa': sasa,
    'sasa_zero_padding': lambda: sasa(padding='zero', kernel_size=3),
}


def record(case: str) -> list[Attention]:
    """Of a backbone with weights large enough to make attention uneven."""
    backbone = CASES[case]().eval()
    for name, parameter in backbone.named_parameters():
        if '.attn.' in name and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.5)
    return record_attention(backbone, torch.randn(1, 3, *SIZE))


def values(attention: Attention) -> Tensor:
    """What the weights are applied to, (height, width, num_heads, head_dim)."""
    name = 'values' if attention.operator == 'query_and_attend' else 'value'
    height, width = attention.size
    return attention.arguments[name][0, :height, :width].detach()


def slide_output(attention: Attention, row: int, column: int) -> Tensor:
    """(num_heads, head_dim) of the weights and the copies that a depthwise convolution makes."""
    weight, bias = (attention.arguments[name].detach() for name in ('weight', 'bias'))
    dim, copies, side, _ = weight.shape
    maps = attention.arguments['value'][0].detach().permute(2, 3, 0, 1)  # (n, d, H, W)
    made = F.conv2d(
        maps, weight.flatten(0, 1)[:, None], bias.flatten(), padding=side // 2, groups=dim
    ).unflatten(1, (dim, copies))[..., row, column]
    (step,) = attention.steps
    weights = step.weights(torch.tensor([[row, column]]))[0].flatten(1)  # (n, copies)
    return torch.einsum('ni,ndi->nd', weights, made)


@pytest.mark.parametrize('case', CASES)
def test_weights_times_values_are_the_output(case: str) -> None:
    records = record(case)
    assert records
    for attention in records:
        rows, columns = attention.query_size
        for query in ((0, 0), (rows // 2, columns // 3), (rows - 1, columns - 1), (1, columns - 1)):
            map_ = attention.map(*query)
            assert map_.shape == (attention.num_heads, *attention.size)
            if attention.operator == 'slide_attention':
                output = slide_output(attention, *query)
            else:
                output = torch.einsum('nhw,hwnd->nd', map_, values(attention))
            expected = attention.output[0][query]  # a layer that pads appends values of 0 here
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def loses_weight(attention: Attention) -> bool:
    """Whether zeros outside the map take part at its border."""
    arguments = attention.arguments
    return (
        attention.operator == 'slide_attention'
        or arguments.get('zero_padding', False)
        or arguments['query'].shape[1:3] != attention.size
    )


@pytest.mark.parametrize('case', [case for case in CASES if 'qna' not in case])
def test_weights_sum_to_one(case: str) -> None:
    for attention in record(case):
        rows, columns = attention.query_size
        corner = attention.map(rows - 1, columns - 1).sum((1, 2))
        if loses_weight(attention):
            assert (corner < 0.9999).any()
        else:
            torch.testing.assert_close(corner, torch.ones_like(corner))


def test_places() -> None:
    """Blocks without local attention are left out, those with it have their place and maps."""
    places = [(a.stage, a.block, a.size, a.query_size) for a in record('qna_vit')]
    assert places == [
        (0, '1', (23, 30), (23, 30)),  # block 0 attends inside windows of a grid
        (1, 'down', (23, 30), (12, 15)),
        (1, '0', (12, 15), (12, 15)),
    ]


def test_captions() -> None:
    captions = [a.caption for case in ('ssvit', 'dinat', 'slide_pvt', 'sasa') for a in record(case)]
    assert (
        captions[0] == 'Sparse scan attention: 3 x 3 anchors, 7 apart, each with its 7 x 7 window'
    )
    assert 'Neighborhood attention: 7 x 7 positions, 3 apart' in captions
    assert 'Slide attention: 3 x 3 shifted copies' in captions
    assert captions[-1] == 'Stand-alone attention: 7 x 7 positions'
    assert record('qna_vit')[1].caption == 'Query and attend: 2 learned queries, 3 x 3, stride 2'


def test_anchors_multiply_out() -> None:
    """The map of a query sums over its anchors what each takes of its window."""
    attention = record('ssvit')[0]
    anchors, windows = attention.steps
    query = torch.tensor([[11, 14]])
    expected = torch.zeros(attention.num_heads, *attention.size)
    weights = anchors.weights(query)[0]
    for a, row in enumerate(anchors.rows[11]):
        for b, column in enumerate(anchors.columns[14]):
            window = windows.weights(torch.tensor([[row, column]]))[0]
            rows, columns = windows.rows[row][:, None], windows.columns[column]
            expected[:, rows, columns] += weights[:, a, b, None, None] * window
    torch.testing.assert_close(attention.map(11, 14), expected)


def test_recording_leaves_the_backbone_as_it_was() -> None:
    backbone = ssvit().eval()
    image = torch.randn(1, 3, 32, 40)
    before = backbone(image)
    records = record_attention(backbone, image)
    assert all(torch.equal(a, b) for a, b in zip(before, backbone(image)))
    assert not any(module._forward_pre_hooks for module in backbone.modules())
    assert not any(a.map(0, 0).requires_grad for a in records)
    assert record_attention(nn.Conv2d(3, 4, 3), image) == []


def test_every_operator_can_be_drawn() -> None:
    assert {*FAMILIES} == {*OPS}


def test_unknown_operator_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FAMILIES, 'neighborhood_attention')
    with pytest.raises(ValueError, match='neighborhood_attention cannot be drawn'):
        record('nat')


def test_unscaled_query_and_attend_is_not_signed() -> None:
    backbone = qna_vit()
    for module in backbone.modules():
        if isinstance(module, QueryAndAttend):
            module.attention_scale = None
    records = record_attention(backbone, torch.randn(1, 3, 32, 32))
    assert not any(attention.is_signed for attention in records)
    torch.testing.assert_close(records[0].map(0, 0).sum((1, 2)), torch.full((1,), 2.0))
