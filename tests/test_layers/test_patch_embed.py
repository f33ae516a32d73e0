import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlocalattn.layers.patch_embed import (
    ConvDownsample,
    ConvStem,
    ConvTokenizer,
    PatchEmbed,
    PatchMerging,
    PatchStem,
)

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


@pytest.mark.parametrize(('kernel_size', 'stride', 'padding'), [(4, 4, 0), (7, 4, 3), (7, 4, 2)])
@pytest.mark.parametrize('size', [(1, 1), (5, 7), (20, 28), (20, 27), (18, 28)])
@pytest.mark.parametrize('symbolic', [False, True])
def test_patches_leave_no_position_out(kernel_size, stride, padding, size, symbolic, monkeypatch):
    monkeypatch.setattr('mmlocalattn.layers.patch_embed.is_symbolic', lambda *lengths: symbolic)
    embed, x = PatchEmbed(3, 8, kernel_size, stride, padding), torch.randn(2, *size, 3)
    y = embed(x)
    assert y.shape == (2, -(-size[0] // stride), -(-size[1] // stride), 8)
    assert y.is_contiguous()
    wide = F.pad(x, (0, 0, padding, kernel_size, padding, kernel_size)).permute(0, 3, 1, 2)
    conv = F.conv2d(wide, embed.proj.weight, embed.proj.bias, stride)[:, :, : y.shape[1]]
    expected = embed.norm(conv[..., : y.shape[2]].permute(0, 2, 3, 1))
    torch.testing.assert_close(y, expected)


def test_patch_stem_reads_images():
    stem, image = PatchStem(3, 8, 4, 4), torch.randn(2, 3, 20, 27)
    expected = PatchEmbed.forward(stem, image.permute(0, 2, 3, 1))
    torch.testing.assert_close(stem(image), expected)


@pytest.mark.parametrize('size', [(1, 1), (5, 8)])
def test_merging_puts_neighbors_side_by_side(size):
    merging, x = PatchMerging(4, 6), torch.randn(2, *size, 4)
    even = F.pad(x, (0, 0, 0, size[1] % 2, 0, size[0] % 2))
    # Swin's order: down the rows first
    cells = [even[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    expected = merging.reduction(merging.norm(torch.cat(cells, -1)))
    torch.testing.assert_close(merging(x), expected)
