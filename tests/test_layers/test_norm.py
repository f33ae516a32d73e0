import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmlocalattn.layers.norm import build_norm, fixed_affine, norm_channels_last


@pytest.mark.parametrize(
    ('norm_cfg', 'kind'),
    [
        (None, nn.BatchNorm2d),
        ({'type': 'BN'}, nn.BatchNorm2d),
        ({'type': 'SyncBN', 'requires_grad': True}, nn.SyncBatchNorm),
        ({'type': 'GN', 'num_groups': 4}, nn.GroupNorm),
        ({'type': 'LN'}, nn.LayerNorm),
    ],
)
def test_mmcv_names(norm_cfg, kind):
    norm = build_norm(norm_cfg, 8)
    assert type(norm) is kind or (kind is nn.LayerNorm and isinstance(norm, kind))
    assert norm.weight.shape == (8,)
    assert all(parameter.requires_grad for parameter in norm.parameters())
    assert norm(torch.randn(2, 8, 3, 5)).shape == (2, 8, 3, 5)


def test_options():
    norm_cfg = {'type': 'BN', 'requires_grad': False, 'eps': 1e-3, 'momentum': 0.01}
    norm = build_norm(norm_cfg, 8)
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)
    assert not any(parameter.requires_grad for parameter in norm.parameters())
    assert norm_cfg == {'type': 'BN', 'requires_grad': False, 'eps': 1e-3, 'momentum': 0.01}


def test_ln_is_over_the_channels():
    x = torch.randn(2, 8, 3, 5)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(build_norm({'type': 'LN'}, 8)(x), expected)


@pytest.mark.parametrize(
    ('norm_cfg', 'message'),
    [
        ({'type': 'BN3d'}, r"one of \['BN', 'CPUSyncBN', 'GN', 'LN', 'SyncBN'\], got .*BN3d"),
        ({'type': 'GN'}, 'GN needs num_groups'),
    ],
)
def test_rejects(norm_cfg, message):
    with pytest.raises(ValueError, match=message):
        build_norm(norm_cfg, 8)


def batch_norm(**options):
    """A BatchNorm with random statistics, in eval mode."""
    norm = nn.BatchNorm2d(8, **options).eval()
    for tensor in (norm.running_mean, norm.weight, norm.bias):
        if tensor is not None:
            nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm


@pytest.mark.parametrize('affine', [True, False])
def test_fixed_affine_is_the_norm(affine):
    norm, x = batch_norm(affine=affine, eps=0.1), torch.randn(2, 8, 3, 5)
    scale, shift = fixed_affine(norm)
    torch.testing.assert_close(norm(x), x * scale[:, None, None] + shift[:, None, None])


@pytest.mark.parametrize(
    'norm',
    [
        nn.BatchNorm2d(8).train(),
        nn.BatchNorm2d(8, track_running_stats=False).eval(),
        nn.GroupNorm(2, 8).eval(),
    ],
    ids=['training', 'no statistics', 'GroupNorm'],
)
def test_a_norm_that_looks_at_its_input_is_not_affine(norm):
    assert fixed_affine(norm) is None


def test_norm_of_a_channels_last_map():
    norm, x = batch_norm(), torch.randn(2, 3, 5, 8)
    expected = norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(norm_channels_last(norm, x), expected)
    assert norm_channels_last(norm, x).is_contiguous()
