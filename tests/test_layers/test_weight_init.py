import pytest
import torch
from torch import nn

from mmlocalattn.layers.weight_init import init_conv, init_linear


def test_linear_layers_alone_are_drawn_anew():
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 8, bias=False), nn.Conv2d(8, 8, 1))
    convolution = model[2].weight.clone()
    model.apply(init_linear)
    assert model[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model[0].bias.any()
    assert torch.equal(model[2].weight, convolution)


def test_convolutions_alone_are_drawn_by_fan_out():
    model = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(64, 64, 3, groups=4), nn.Conv2d(8, 8, 1))
    linear = model[0].weight.clone()
    model.apply(init_conv)
    assert model[1].weight.std().item() == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.1)
    assert not model[1].bias.any()
    assert torch.equal(model[0].weight, linear)
