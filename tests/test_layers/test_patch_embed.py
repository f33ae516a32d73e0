import pytest
import torch
from torch import nn

from mmlocalattn.layers.patch_embed import ConvDownsample, ConvStem


@pytest.mark.parametrize('size', [(1, 1), (5, 9), (32, 48)])
def test_stem_lowers_the_resolution_four_times(size):
    stem = ConvStem(3, 16).eval()
    y = stem(torch.randn(2, 3, *size))
    assert y.shape == (2, -(-size[0] // 4), -(-size[1] // 4), 16)
    assert y.is_contiguous()


def test_stem_reads_channels_last_images():
    stem, image = ConvStem(3, 16).eval(), torch.randn(2, 3, 20, 28)
    torch.testing.assert_close(stem(image), stem(image.to(memory_format=torch.channels_last)))


@pytest.mark.parametrize('size', [(1, 1), (5, 8)])
def test_downsample_halves_the_resolution(size):
    y = ConvDownsample(8, 12).eval()(torch.randn(2, *size, 8))
    assert y.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 12)
    assert y.is_contiguous()


@pytest.mark.parametrize(('build', 'count'), [(ConvStem, 4), (ConvDownsample, 1)])
def test_norm_cfg_reaches_every_norm(build, count):
    module = build(4, 8, {'type': 'GN', 'num_groups': 2})
    assert sum(isinstance(child, nn.GroupNorm) for child in module.modules()) == count
    assert not any(isinstance(child, nn.BatchNorm2d) for child in module.modules())
