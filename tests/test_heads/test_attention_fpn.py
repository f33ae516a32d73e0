import pytest
import torch
from mmdet.registry import MODELS
from torch.nn import functional as F

from mmlocalattn.heads.attention_fpn import AttentionFPN


def build(**options):
    cfg = dict(type='mmlocalattn.AttentionFPN', in_channels=[4, 8, 12], out_channels=16)
    return MODELS.build(cfg | options)


def maps():
    sizes = ((13, 17), (7, 9), (4, 5))
    return [torch.randn(2, 4 * i, *size) for i, size in enumerate(sizes, 1)]


def test_equals_its_definition():
    neck, inputs = build(num_heads=2, kernel_size=3), maps()
    assert type(neck) is AttentionFPN
    laterals = [lateral(x) for lateral, x in zip(neck.laterals, inputs)]
    top_down = [laterals[2]]
    for lateral in reversed(laterals[:2]):
        top_down.insert(0, lateral + F.interpolate(top_down[0], lateral.shape[2:]))
    attentions = list(neck.attentions)
    expected = [attentions[i](x.permute(0, 2, 3, 1)) for i, x in enumerate(top_down)]
    for attention in attentions[3:]:
        assert attention.stride == 2
        expected.append(attention(expected[-1]))
    outputs = neck(inputs)
    assert [output.shape[2:] for output in outputs] == [(13, 17), (7, 9), (4, 5), (2, 3), (1, 2)]
    for output, y in zip(outputs, expected, strict=True):
        assert output.is_contiguous()
        torch.testing.assert_close(output, y.permute(0, 3, 1, 2))


def test_every_parameter_learns():
    neck = build(num_outs=4)
    outputs = neck(maps())
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_start_level():
    inputs = maps()
    neck = build(start_level=1, num_outs=2)
    assert [output.shape[2:] for output in neck(inputs)] == [(7, 9), (4, 5)]
    assert [lateral.in_channels for lateral in neck.laterals] == [8, 12]


@pytest.mark.parametrize('options', [{'num_outs': 2}, {'start_level': 3}, {'start_level': -1}])
def test_rejects(options):
    with pytest.raises(ValueError, match='num_outs must be at least the number of used maps'):
        build(**options)
