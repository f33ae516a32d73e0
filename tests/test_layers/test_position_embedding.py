import torch
import torch.nn.functional as F

from mmlocalattn.layers.position_embedding import PositionEmbedding


def test_adds_the_positions():
    layer, x = PositionEmbedding(6, 5), torch.randn(2, 5, 5, 6)
    torch.testing.assert_close(layer(x), x + layer.pos_embed)


def test_resizes_the_positions():
    layer, x = PositionEmbedding(6, 5), torch.zeros(2, 9, 3, 6)
    maps = F.interpolate(layer.pos_embed.permute(0, 3, 1, 2), (9, 3), mode='bilinear')
    torch.testing.assert_close(layer(x), maps.permute(0, 2, 3, 1).expand(2, -1, -1, -1))
    layer(x).sum().backward()
    assert layer.pos_embed.grad is not None


def test_keeps_the_dtype():
    layer, x = PositionEmbedding(6, 5), torch.zeros(1, 4, 4, 6, dtype=torch.bfloat16)
    assert layer(x).dtype == torch.bfloat16
