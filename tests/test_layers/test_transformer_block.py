import pytest
import torch
from torch import nn

from mmlocalattn.layers.mlp import MLP
from mmlocalattn.layers.transformer_block import TransformerBlock


@pytest.mark.parametrize('layer_scale', [None, 0.5])
def test_is_two_residual_branches(layer_scale):
    attn, mlp = nn.Linear(8, 8), MLP(8, 16)
    block = TransformerBlock(8, attn, mlp, layer_scale=layer_scale, norm_eps=1e-3)
    x = torch.randn(2, 3, 4, 8)
    scale = 1 if layer_scale is None else layer_scale
    norm = nn.LayerNorm(8, eps=1e-3)
    y = x + scale * attn(norm(x))
    expected = y + scale * mlp(norm(y))
    torch.testing.assert_close(block(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(block(x.clone()), expected)


def test_drops_branches_in_training_only():
    block = TransformerBlock(8, nn.Linear(8, 8), MLP(8, 16), drop_path_rate=0.999)
    x = torch.randn(2, 3, 4, 8)
    assert torch.equal(block(x), x)
    assert not torch.equal(block.eval()(x), x)
