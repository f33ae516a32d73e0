import pytest
import torch
from torch import nn

from mmlocalattn.layers.patch_embed import ConvDownsample, ConvStem, ConvTokenizer

STEMS = pytest.mark.parametrize('stem', [ConvStem, ConvTokenizer])


@STEMS
@pytest.mark.parametrize('size', [(1, 1), (5, 9), (32, 48)])
def test_stem_lowers_the_resolution_four_times(stem, size):
    stem = stem(3, 16).eval()
    y = stem(torch.randn(2, 3, *size))
    assert y.shape == (2, -(-size[0] // 4), -(-size[1] // 4), 16)
    assert y.is_contiguous()


@STEMS
def test_stem_reads_channels_last_images(stem):
    stem, image = stem(3, 16).eval(), torch.randn(2, 3, 20, 28)
    torch.testing.assert_close(stem(image), stem(image.to(memory_format=torch.channels_last)))


@pytest.mark.parametrize('size', [(1, 1), (5, 8)])
@pytest.mark.parametrize(('norm_cfg', 'bias'), [(None, True), ({'type': 'LN'}, False)])
def test_downsample_halves_the_resolution(size, norm_cfg, bias):
    y = ConvDownsample(8, 12, norm_cfg, bias).eval()(torch.randn(2, *size, 8))
    assert y.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 12)
    assert y.is_contiguous()


@pytest.mark.parametrize(('build', 'count'), [(ConvStem, 4), (ConvDownsample, 1)])
def test_norm_cfg_reaches_every_norm(build, count):
    module = build(4, 8, {'type': 'GN', 'num_groups': 2})
    assert sum(isinstance(child, nn.GroupNorm) for child in module.modules()) == count
    assert not any(isinstance(child, nn.BatchNorm2d) for child in module.modules())


def test_tokenizer_ends_with_a_norm_and_has_no_activation():
    tokens = ConvTokenizer(3, 16).eval()
    y = tokens(torch.randn(1, 3, 20, 28))
    torch.testing.assert_close(y.mean(-1), torch.zeros(1, 5, 7), rtol=0, atol=1e-5)
    assert [type(module) for module in tokens.proj] == [nn.Conv2d, nn.Conv2d]


def test_downsample_without_bias():
    assert ConvDownsample(8, 12, {'type': 'LN'}, bias=False).conv.bias is None
