import torch

from mmlocalattn.layers.layer_scale import LayerScale


def test_multiplies_each_channel():
    scale = LayerScale(3, 1e-6)
    assert torch.equal(scale.weight, torch.full((3,), 1e-6))
    scale.weight.data = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(
        scale(torch.ones(2, 4, 5, 3)), torch.tensor([1.0, 2.0, 3.0]).expand(2, 4, 5, 3)
    )
