import re

import numpy as np
import pytest
import torch
from backbone_contract import BackboneContract
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmlocalattn.backbones.nat import NAT
from mmlocalattn.backbones.slide_transformer import (
    SlideCSwin,
    SlideNAT,
    SlidePVT,
    SlidePVTv2,
    SlideSwin,
)
from mmlocalattn.converters.slide_swin import convert, infer_options
from mmlocalattn.layers.slide_attention import SlideAttention

NARROW = {
    'embed_dims': (8, 12, 16, 24),
    'depths': (2, 1, 2, 2),
    'num_heads': (2, 2, 2, 2),
    'mlp_ratios': (2, 2, 2, 2),
}
PVT = {**NARROW, 'sr_ratios': (8, 4, 2, 1)}
CSWIN = {**NARROW, 'split_sizes': (1, 2, 7, None)}
# With the last norm and a linear layer for 1000 classes: host, slide, in millions as published
PARAMETERS = {
    (SlideSwin, 'tiny'): (28_288_354, 28_293_346, 28.3, None),
    (SlidePVT, 'tiny'): (13_228_264, 12_203_934, 13.2, 12.2),
}


@pytest.mark.parametrize('name', ['slide_swin_small_ws7', 'slide_swin_small_ws56'])
def test_equals_the_released_model(golden, name):
    """Both window sizes share what the second file lacks; tests/data has no stage 3."""
    arrays = {
        key: torch.from_numpy(array)
        for key, array in {**golden('slide_swin_small_ws7'), **golden(name)}.items()
    }
    weights = {key[6:]: array for key, array in arrays.items() if key[:6] == 'param/'}
    options = infer_options(weights)
    assert options == {
        'num_slide_stages': 2,
        'kernel_size': 3,
        'window_size': int(name.rpartition('ws')[2]),
    }
    arch = {
        'embed_dims': (16, 32, 64, 128),
        'depths': (2, 2, 2, 2),
        'num_heads': (1, 2, 2, 4),
        'mlp_ratios': (4, 4, 4, 4),
    }
    model = nn.ModuleDict({'backbone': SlideSwin(arch, out_indices=(3,), **options)})
    model['head'] = nn.ModuleDict({'fc': nn.Linear(128, 10)})
    missing, unexpected = model.load_state_dict(convert(weights), strict=False)
    assert unexpected == []
    assert all(key.startswith('backbone.stages.3.') for key in missing)

    image = torch.from_numpy(np.random.default_rng(6).standard_normal((1, 3, 224, 224))).float()
    with torch.no_grad():
        x = model['backbone'].stem(image)
        for index, stage in enumerate(model['backbone'].stages[: 3 if missing else 4]):
            x = stage(x)
            if (key := f'out/stage{index}') in arrays:
                assert_close(x.permute(0, 3, 1, 2), arrays[key])
        last = arrays['out/stage3'].permute(0, 2, 3, 1)
        vector = model['backbone'].output_norms['3'](last).mean((1, 2))
        assert_close(model['head']['fc'](vector), arrays['out/logits'])
        if not missing:
            (last,) = model['backbone'](image)
            assert_close(model['head']['fc'](last.mean((2, 3))), arrays['out/logits'])


def assert_close(result, expected):
    assert (result - expected).abs().max() < 1e-4 * expected.abs().max()
