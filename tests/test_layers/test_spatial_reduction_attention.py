import pytest
import torch
from torch import nn

from mmlocalattn.layers.spatial_reduction_attention import SpatialReductionAttention


@pytest.mark.parametrize('sr_ratio', [1, 2, 4])
@pytest.mark.parametrize('size', [(8, 12), (7, 9), (1, 1)])
def test_equals_multihead_attention_to_the_patches(sr_ratio, size):
    layer, x = (
        SpatialReductionAttention(16, 2, sr_ratio).double(),
        torch.randn(2, *size, 16).double(),
    )
    reference = nn.MultiheadAttention(16, 2, batch_first=True).double()
    reference.in_proj_weight = nn.Parameter(torch.cat([layer.q.weight, layer.kv.weight]))
    reference.in_proj_bias = nn.Parameter(torch.cat([layer.q.bias, layer.kv.bias]))
    reference.out_proj = layer.proj
    keys = layer.reduction(x).flatten(1, 2)
    assert keys.shape[1] == -(-size[0] // sr_ratio) * -(-size[1] // sr_ratio)
    expected, _ = reference(x.flatten(1, 2), keys, keys)
    torch.testing.assert_close(layer(x).flatten(1, 2), expected)


def test_rejects():
    with pytest.raises(ValueError, match='got dim=16, num_heads=3'):
        SpatialReductionAttention(16, 3)
