import pytest
import torch
from torch import nn

from mmlocalattn.layers.weight_init import init_linear


def test_linear_layers_alone_are_drawn_anew():
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 8, bias=False), nn.Conv2d(8, 8, 1))
    convolution = model[2].weight.clone()
    model.apply(init_linear)
    assert model[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model[0].bias.any()
    assert torch.equal(model[2].weight, convolution)
